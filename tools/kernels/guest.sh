# Process 1 of a guest, on its root: what an init system would have done, then /mnt/out/job.sh, then the end.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock
mount -t cgroup2 cgroup /sys/fs/cgroup
# What programs of this machine may be writing to just now: the guest has its own. Homes stay empty.
mkdir -p /var/lib/containers
mount -t tmpfs -o mode=700 containers /var/lib/containers
owners=$(stat -c '%u:%g:%a:%n' /home/* 2>/dev/null)
mount -t tmpfs -o mode=755 home /home
for owner in $owners; do
	IFS=: read -r uid gid mode path <<<"$owner"
	mkdir "$path" && chown "$uid:$gid" "$path" && chmod "$mode" "$path"
done
mount --make-rshared /
for module in overlay loop fuse squashfs dm_mod dummy; do modprobe "$module"; done
ln -sfn /proc/self/fd /dev/fd
for number in 0 1 2; do ln -sfn "/proc/self/fd/$number" "/dev/$(echo stdin stdout stderr | cut -d' ' -f$((number + 1)))"; done
# Slurm wants an address that is not of loopback: getaddrinfo() is asked with AI_ADDRCONFIG.
ip link add d0 type dummy
ip addr add 10.99.0.1/24 dev d0
ip link set d0 up
ip link set lo up
hostname guest
echo "piolet-guest: up after $(cut -d' ' -f1 /proc/uptime) s with $(uname -r)"
cd /
bash /mnt/out/job.sh </dev/null >/mnt/out/log 2>&1
echo $? >/mnt/out/status
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
