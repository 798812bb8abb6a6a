# Processes: 400 in batches of 40, each with a result that is checked.
set -e
rm -rf /tmp/forks
mkdir -p /tmp/forks
batch=0
while [ $batch -lt 10 ]; do
    child=0
    while [ $child -lt 40 ]; do
        (echo $((batch * 40 + child)) >/tmp/forks/$batch.$child) &
        child=$((child + 1))
    done
    wait
    batch=$((batch + 1))
done
sum=$(cat /tmp/forks/* | awk '{ sum += $1 } END { print sum }')
rm -rf /tmp/forks
[ "$sum" = 79800 ] || { echo "forks: sum is $sum, not 79800"; exit 1; }
echo "forks: ok"
