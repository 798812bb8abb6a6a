# What the case `control-gdb` does to the tiny guest, which loops reading a port: stop, look, step, run to a break point, go.
set pagination off
set confirm off
info threads
set $start = $rip
printf "long mode %d\n", $cs != 0
stepi
printf "stepped %d\n", $rip != $start
stepi
stepi
x/4xb $rip
set {long}($rsp - 256) = 0x5a5a1234
printf "memory %lx\n", {long}($rsp - 256)
break *$start
continue
printf "back %d\n", $rip == $start
delete
set $saved = $r15
set $r15 = 0x77
printf "register %lx\n", $r15
set $r15 = $saved
stepi
printf "stepped again %d\n", $rip != $start
detach
