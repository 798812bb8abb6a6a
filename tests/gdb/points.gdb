# What the cases `control-gdb-points*` do to the tiny guest, whose processors count: break points in memory, continue, step, look, change, go.
set pagination off
set confirm off
symbol-file target/bare/x86_64-unknown-none/release/moira-test-guest
set language c
break *(long)&count_here
continue
printf "stopped there %d\n", $rip == (long)&count_here
set $first = {long}$rdi
printf "code unchanged %d\n", {unsigned char}$rip == 0x48
set $me = $_thread
set scheduler-locking on
continue
printf "once more %d\n", $rip == (long)&count_here && {long}$rdi == $first + 1 && $_thread == $me
stepi
printf "stepped %d\n", $rip == (long)&count_here + 3 && {long}$rdi == $first + 2
break *(long)&count_done
continue
printf "second point %d\n", $rip == (long)&count_done && $rax == $first + 2
set $rax = 0x1234
stepi
printf "returned %d\n", $rip != (long)&count_done && $rax == 0x1234
delete
break *(long)&count_here
# Each processor alone, then all together.
set $seen = 0
set $i = 1
while $i <= $_inferior_thread_count
  thread $i
  continue
  set $first = {long}$rdi
  if $rip == (long)&count_here
    set $seen = $seen | (1 << $_thread)
  end
  stepi
  printf "processor %d counted %d\n", $_thread, {long}$rdi - $first
  set $i = $i + 1
end
printf "stopped processors %d\n", $seen
set scheduler-locking off
continue
continue
continue
printf "all there %d\n", $rip == (long)&count_here
delete
detach
