# Every script but `sleep`, one after the other; fails if one fails.
status=0
for name in mount forks block entropy messages; do
    echo "guest: part $name"
    sh "/tests/$name" || { echo "guest: part $name failed"; status=1; }
done
exit $status
