# The kernel's messages of level 0 to 4, each behind `message:`, for a comparison with a list of what may stand there.
dmesg -r | awk -F '[<>]' '/^</ && $2 % 8 <= 4 { sub(/^<[0-9]+>\[ *[0-9.]+\] */, ""); print "message: " $0 }'
echo "messages: ok"
