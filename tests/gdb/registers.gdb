# What the case `control-gdb-registers` does to the tiny guest: break points in debug registers, and a look at what is written.
set pagination off
set confirm off
symbol-file target/bare/x86_64-unknown-none/release/moira-test-guest
set language c
hbreak *(long)&count_here
continue
printf "stopped there %d\n", $rip == (long)&count_here
set $first = {long}$rdi
continue
printf "once more %d\n", $rip == (long)&count_here && {long}$rdi == $first + 1
delete
detach
