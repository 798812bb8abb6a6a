# File systems: a tmpfs takes files, gives them back, refuses them once read-only, and goes away.
set -e
folder=/mnt/test
mkdir -p $folder
mount -t tmpfs -o size=8m tmpfs $folder
dd if=/dev/urandom of=$folder/a bs=64k count=32 2>/dev/null
cp $folder/a $folder/b
cmp $folder/a $folder/b
mount -o remount,ro $folder
if touch $folder/c 2>/dev/null; then
    echo "mount: wrote to a read-only file system"
    exit 1
fi
umount $folder
[ ! -e $folder/a ]
echo "mount: ok"
