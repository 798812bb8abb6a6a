#!/bin/sh
# First program of the guest: mounts what every Linux expects, loads the virtio drivers, and gives a shell.
#
# Words on the kernel's command line:
#   moira.script=NAME   run /tests/NAME instead of the shell (several: NAME,NAME), then power off
export PATH=/bin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
ln -sf /proc/mounts /etc/mtab
hostname guest

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "init: cannot load $module"
done </lib/modules/order

# A virtio console exists only now; before, the kernel had none to give to this program.
if (: </dev/console) 2>/dev/null; then
    exec </dev/console >/dev/console 2>&1
fi

# What comes from the power button's input device means that it was pressed.
button=$(sed -n '/Power Button/,/Handlers/s/.*\(event[0-9]*\).*/\1/p' /proc/bus/input/devices)
if [ -n "$button" ]; then
    (dd if="/dev/input/$button" of=/dev/null bs=24 count=1 2>/dev/null
    echo "guest: the power button was pressed"
    sync
    poweroff -f) &
fi

scripts=
for word in $(cat /proc/cmdline); do
    case $word in
        moira.script=*) scripts=$(echo "${word#moira.script=}" | tr , ' ') ;;
    esac
done

# The kernel's last lines of a full log may still be on their way.
echo
echo "guest: Linux $(uname -r), up in $(cut -d ' ' -f 1 /proc/uptime) s"

if [ -n "$scripts" ]; then
    for script in $scripts; do
        echo "guest: script $script begins"
        if sh "/tests/$script"; then
            echo "guest: script $script passed"
        else
            echo "guest: script $script failed"
        fi
    done
else
    echo "guest: 'exit' powers off; test scripts are in /tests"
    export PS1='guest:\w# '
    cd /root
    # A controlling terminal makes Ctrl-C and job control work.
    setsid cttyhack sh
fi
echo "guest: powering off"
sync
poweroff -f
