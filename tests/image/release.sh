#!/bin/sh
# Turns the shared layer into a stand-in for a Fedora release. Runs in a container: /repo is the repository made by
# make_repo.py, /source the folder tests. $1: the release.
set -eu
release=$1
top=/opt/llamafleet-test

case $release in
    43) words='Forty Three' ;;
    44) words='Forty Four' ;;
    *) echo "release.sh: no name for release $release" >&2 && exit 1 ;;
esac

# --- the repository
cp -a "/repo/$release" "$top/repo/$release"
mv "$top/repo/$release/repodata" "$top/repo/repodata"
key=/etc/pki/rpm-gpg/RPM-GPG-KEY-fedora-$release-$(uname -m)
install -D -m 0644 /repo/key.asc "$key"
mkdir -p /etc/yum.repos.d
cat >/etc/yum.repos.d/fedora.repo <<END
[fedora]
name=Fedora \$releasever - \$basearch (stand-in)
baseurl=file://$top/repo
enabled=1
gpgcheck=1
repo_gpgcheck=0
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-fedora-\$releasever-\$basearch
END

# --- the name it goes by
rm -f /etc/debian_version /etc/issue /etc/issue.net /etc/os-release /etc/dpkg/origins/default
sed -e "s/@RELEASE@/$release/g" /source/image/os-release.in >/usr/lib/os-release
ln -s ../usr/lib/os-release /etc/os-release
echo "Fedora release $release ($words)" >/etc/fedora-release
ln -sf fedora-release /etc/redhat-release
ln -sf fedora-release /etc/system-release
echo "cpe:/o:fedoraproject:fedora:$release" >/etc/system-release-cpe

# --- commands: Fedora's names, and none of Debian's package tools
ln -sf dnf5 /usr/bin/dnf
ln -sf dnf5 /usr/bin/yum
ln -sf grub-editenv /usr/bin/grub2-editenv
install -D -m 0755 /source/image/grubby /usr/sbin/grubby
mkdir -p "$top/debian"
for tool in /usr/bin/apt /usr/bin/apt-* /usr/bin/dpkg /usr/bin/dpkg-* /usr/sbin/dpkg-*; do
    if [ -e "$tool" ]; then mv "$tool" "$top/debian/"; fi
done
rm -f /etc/systemd/system/timers.target.wants/apt-daily*.timer /etc/systemd/system/timers.target.wants/dpkg-db-backup.timer
grep -v '^#' /source/host/masked-units | while read -r unit; do ln -sf /dev/null "/etc/systemd/system/$unit"; done
# Debian switches this plugin on; it copies every RPM into a second repository, and needs createrepo_c for that.
rm -f /etc/dnf/libdnf5-plugins/local.conf
# Named by Debian's PAM settings; without it every sudo is a warning in the journal.
: >/etc/default/locale

# --- the rpm database: where Fedora has it, with the packages that every Fedora host has
echo '%_dbpath /usr/lib/sysimage/rpm' >/usr/lib/rpm/macros.d/macros.llamafleet-test
rm -rf /var/lib/rpm
mkdir -p /usr/lib/sysimage/rpm
ln -s ../../usr/lib/sysimage/rpm /var/lib/rpm
rpm --import "$key"
rpm --install --noscripts --notriggers "/repo/base-$release"/*.rpm

# --- a boot loader's files: two kernels and a rescue entry
sh /source/image/boot-entries.sh

# --- a machine of its own at each boot
rm -rf /var/cache/libdnf5 /var/lib/dnf /var/lib/dbus/machine-id /var/log/journal /tmp/* /var/tmp/*
: >/etc/machine-id
