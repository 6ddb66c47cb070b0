# What precedes process 1 of a host under test, given to `sh -c`. A container shares the kernel's boot identity and
# command line with its machine; after a reboot of the host both would be the old ones, and nothing could tell that it
# had rebooted. So each boot gets its own: a fresh identity, and the command line of the default boot entry.
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind -o ro /run/boot_id /proc/sys/kernel/random/boot_id
if command -v grubby >/dev/null && entry=$(grubby --info=DEFAULT 2>/dev/null) && [ -n "$entry" ]; then
    field() { printf '%s\n' "$entry" | sed -n "s/^$1=\"\(.*\)\"\$/\1/p"; }
    # GRUB puts the values of its variables in; here they are empty.
    args=$(field args | tr ' ' '\n' | grep -v '^\$' | tr '\n' ' ')
    echo "BOOT_IMAGE=(hd0,gpt2)$(field kernel) root=$(field root) ${args% }" >/run/cmdline
    mount --bind -o ro /run/cmdline /proc/cmdline
fi
exec /sbin/init
