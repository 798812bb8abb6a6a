# The entropy device: it is the kernel's source, gives what is asked, and not the same twice.
set -e
source=$(cat /sys/class/misc/hw_random/rng_current)
case $source in
    virtio_rng*) ;;
    *) echo "entropy: the source is '$source'"; exit 1 ;;
esac
dd if=/dev/hwrng of=/tmp/one bs=256 count=4 iflag=fullblock 2>/dev/null
dd if=/dev/hwrng of=/tmp/two bs=256 count=4 iflag=fullblock 2>/dev/null
[ "$(wc -c </tmp/one)" = 1024 ]
if cmp -s /tmp/one /tmp/two; then
    echo "entropy: twice the same"
    exit 1
fi
rm /tmp/one /tmp/two
echo "entropy: ok"
