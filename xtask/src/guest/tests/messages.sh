# The kernel's messages of level 0 to 4: each must match a pattern of /tests/allowed, whose lines with # are comments.
grep -v '^#' /tests/allowed >/tmp/allowed
dmesg -r | awk -F '[<>]' '/^</ && $2 % 8 <= 4 { sub(/^<[0-9]+>\[ *[0-9.]+\] */, ""); print }' >/tmp/messages
if grep -v -E -f /tmp/allowed /tmp/messages >/tmp/strange; then
    sed 's/^/messages: not allowed: /' /tmp/strange
    exit 1
fi
echo "messages: ok, $(wc -l </tmp/messages) of level 4 or worse"
