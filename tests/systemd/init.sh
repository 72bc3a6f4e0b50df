#!/bin/sh
# The first process of a machine within the machine: systemd, with nothing to start, and the programs named as arguments
# in /usr/local/bin. Run it as process 1 of namespaces of its own:
#
#   unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup tests/systemd/init.sh target/debug/allout
#
# All that it writes goes to memory and ends with it: /etc and /usr are laid over, the rest of what systemd wants to write to is
# empty, and what belongs to the kernel and not to a namespace cannot be written to.
set -eu

mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/bin
cp "$@" /mnt/bin
for place in etc usr; do
    mkdir -p /mnt/$place /mnt/scratch/$place
    mount -t overlay overlay -o lowerdir=/$place,upperdir=/mnt/$place,workdir=/mnt/scratch/$place /$place
done
mount --bind /mnt/bin /usr/local/bin
for place in /run /var /tmp; do mount -t tmpfs tmpfs $place; done
mkdir -p /var/tmp /var/lib /var/log
ln -s /run /var/run
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount --bind /dev/null /dev/kmsg
# A start waits for the system to be initialized. Nothing is: it has been, outside.
for target in sysinit local-fs; do mount -t tmpfs tmpfs /usr/lib/systemd/system/$target.target.wants; done
for unit in modprobe@ systemd-remount-fs; do mount --bind /dev/null /usr/lib/systemd/system/$unit.service; done
ip link set lo up

echo 0123456789abcdef0123456789abcdef >/etc/machine-id
: >/etc/fstab
cat >/etc/systemd/system/quiet.target <<UNIT
[Unit]
Description=Nothing but the journal
Requires=systemd-journald.service
After=systemd-journald.service
UNIT
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >/etc/systemd/journald.conf.d/test.conf

cd /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=test \
    "$(command -v systemd || echo /lib/systemd/systemd)" --system --unit=quiet.target
