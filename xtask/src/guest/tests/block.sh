# The block device: raw writes read back, then a file system on it keeps a file over unmounting.
set -e
disk=/dev/vda
[ -b $disk ] || { echo "block: no $disk"; exit 1; }
echo "block: $(blockdev --getsize64 $disk) bytes"
dd if=/dev/urandom of=/tmp/pattern bs=64k count=16 2>/dev/null
dd if=/tmp/pattern of=$disk bs=64k conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=$disk of=/tmp/back bs=64k count=16 2>/dev/null
cmp /tmp/pattern /tmp/back
# Inodes of 256 bytes: with smaller ones the kernel warns about the year 2038.
mke2fs -I 256 $disk >/dev/null
mkdir -p /mnt/disk
mount -t ext4 $disk /mnt/disk
cp /tmp/pattern /mnt/disk/file
umount /mnt/disk
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro $disk /mnt/disk
cmp /tmp/pattern /mnt/disk/file
umount /mnt/disk
rm /tmp/pattern /tmp/back
echo "block: ok"
