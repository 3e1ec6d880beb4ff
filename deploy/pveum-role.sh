#!/bin/sh
# Sets up Proxmox VE 8 or 9 for Agent Smith with the least privileges: roles, a user, an API token and their permissions.
# Run it as root on a node of the cluster. A second run changes nothing; it never removes a privilege.
#
#   pveum-role.sh --storage local-lvm [--storage NAME]... [--images NAME]... [--zone NAME] [--bridge NAME]...
#                 [--mapping KIND/NAME]... [--user USER@REALM] [--token NAME] [--placement] [--backup]
#                 [--cd-drive] [--secret-file FILE] [--dry-run]
#
#   --storage NAME      storage of disks, templates and cloud-init drives; may be repeated
#   --images NAME       storage of ISO images and container templates, unless it is a --storage; may be repeated
#   --zone NAME         the SDN zone of the VMs' bridges (default: localnetwork, the zone of plain bridges)
#   --bridge NAME       a bridge, or a VNet as ZONE/NAME, that VMs may use; may be repeated (default: the whole zone)
#   --mapping KIND/NAME a device mapping of a template: pci/NAME, usb/NAME, dir/NAME, cpu/NAME or hwrng; may be repeated
#   --user, --token     PROXMOX_USER and PROXMOX_TOKEN_ID (default: smith@pve, job)
#   --placement         allow it to read the load of the nodes, to choose a node for new VMs (Sys.Audit on /nodes)
#   --backup            allow it to back up VMs (VM.Backup); PROXMOX_BACKUP_STORAGE is one of --storage
#   --cd-drive          allow it to clone templates with a physical CD drive (Sys.Console on /)
#   --secret-file FILE  write the token's secret to FILE, readable by root only, instead of printing it
#   --dry-run           print the changes, and make none
set -eu

user=smith@pve token=job storages='' images='' bridges='' mappings='' zone=localnetwork
secret_file='' dry_run='' placement='' backup='' cd_drive=''
vm_privileges='VM.Allocate VM.Audit VM.Clone VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk VM.Config.HWType
  VM.Config.Memory VM.Config.Network VM.Config.Options VM.Migrate VM.PowerMgmt VM.Snapshot'

fail() {
  echo "pveum-role.sh: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"; }

# check_name OPTION NAME: names become part of paths and command lines, so only Proxmox's own characters are allowed.
check_name() {
  case $2 in
    '' | *[!A-Za-z0-9@._/-]* | -*) fail "$1 needs a name of letters, digits and . _ - @, not '$2'" ;;
  esac
}

check_mapping() {
  case $1 in
    hwrng | pci/?* | usb/?* | dir/?* | cpu/?*) ;;
    *) fail "--mapping needs pci/NAME, usb/NAME, dir/NAME, cpu/NAME or hwrng, not '$1'" ;;
  esac
}

read_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry_run=yes && shift && continue ;;
      --placement) placement=yes && shift && continue ;;
      --backup) backup=yes && shift && continue ;;
      --cd-drive) cd_drive=yes && shift && continue ;;
      -h | --help) usage && exit 0 ;;
      --storage | --images | --zone | --bridge | --mapping | --user | --token | --secret-file) ;;
      *) fail "unknown argument '$1'; --help lists the known ones" ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value"
    check_name "$1" "$2"
    case $1 in
      --storage) storages="$storages $2" ;;
      --images) images="$images $2" ;;
      --zone) zone=$2 ;;
      --bridge) bridges="$bridges $2" ;;
      --mapping) check_mapping "$2" && mappings="$mappings $2" ;;
      --user) user=$2 ;;
      --token) token=$2 ;;
      --secret-file) secret_file=$2 ;;
    esac
    shift 2
  done
  [ -n "$storages" ] || fail "--storage is missing: a VM needs a disk"
  case $user in ?*@?*) ;; *) fail "--user needs a realm, such as smith@pve" ;; esac
}

# The privilege for the guest agent has another name in each version; pveum refuses the other version's name.
guest_privilege() {
  version=$(pveversion) || fail "pveversion fails: run this on a node of the cluster"
  version=${version#pve-manager/}
  case ${version%%.*} in
    8) echo VM.Monitor ;;
    9 | [1-9][0-9]) echo VM.GuestAgent.Audit ;;
    *) fail "this is for Proxmox VE 8 and 9, not '$version'" ;;
  esac
}

# list KIND [SUBKIND USER]: print pveum's list as JSON on one line
list() {
  found=$(pveum "$1" ${3:+"$2"} list ${3:+"$3"} --output-format json) || fail "pveum $1 list failed"
  printf '%s' "$found" | tr -d ' \n'
}

# is_in LIST FIELD VALUE: whether a list has an entry with this value
is_in() {
  case $1 in *"\"$2\":\"$3\""*) ;; *) return 1 ;; esac
}

run() {
  echo "+ $*" >&2
  [ -n "$dry_run" ] || "$@"
}

make_role() {
  role=$1
  shift
  privileges=$(IFS=, && echo "$*")
  if is_in "$roles" roleid "$role"; then
    run pveum role modify "$role" --append 1 --privs "$privileges"
  else
    run pveum role add "$role" --privs "$privileges"
  fi
}

# With privilege separation a token has only privileges that its user has too, so both get the role.
allow() {
  run pveum acl modify "$1" --users "$user" --tokens "$user!$token" --roles "$2"
}

make_user() {
  is_in "$users" userid "$user" || run pveum user add "$user" --comment 'Agent Smith'
}

has_token() {
  is_in "$users" userid "$user" || return 1
  tokens=$(list user token "$user") || exit 2
  is_in "$tokens" tokenid "$token"
}

make_token() {
  if has_token; then
    echo "token $user!$token exists; its secret was printed when it was created. To replace a lost secret:" >&2
    echo "pveum user token remove $user $token, then run this script again" >&2
    return
  fi
  [ -z "$secret_file" ] || [ ! -e "$secret_file" ] || fail "$secret_file exists; the new secret would overwrite it"
  echo "+ pveum user token add $user $token --privsep 1" >&2
  [ -z "$dry_run" ] || return 0
  answer=$(pveum user token add "$user" "$token" --privsep 1 --output-format json) || fail "pveum cannot create the token"
  secret=$(printf '%s' "$answer" | tr -d ' \n' | sed -n 's/.*"value":"\([^"]*\)".*/\1/p')
  [ -n "$secret" ] || fail "the token was created, but pveum's answer has no secret; remove the token and try again"
  show_secret
}

# printf is a shell builtin, so the secret is in no command line.
show_secret() {
  if [ -n "$secret_file" ]; then
    (umask 077 && printf '%s\n' "$secret" >"$secret_file")
    echo "the token's secret is in $secret_file" >&2
  else
    echo "the token's secret, printed only this time:" >&2
    printf '%s\n' "$secret"
  fi
}

read_arguments "$@"
command -v pveum >/dev/null || fail "pveum is missing: run this as root on a node of the cluster"
guest=$(guest_privilege)
roles=$(list role)
users=$(list user)

# shellcheck disable=SC2086 # splits the lists into words
{
  make_role SmithVM $vm_privileges "$guest"
  make_role SmithStore Datastore.AllocateSpace Datastore.Audit
  make_role SmithNet SDN.Use
  [ -z "$images" ] || make_role SmithImages Datastore.Audit
  [ -z "$mappings" ] || make_role SmithMapping Mapping.Use
  [ -z "$placement" ] || make_role SmithNodes Sys.Audit
  [ -z "$backup" ] || make_role SmithBackup VM.Backup
  [ -z "$cd_drive" ] || make_role SmithConsole Sys.Console
}
make_user
make_token
allow /vms SmithVM
for storage in $storages; do allow "/storage/$storage" SmithStore; done
for storage in $images; do allow "/storage/$storage" SmithImages; done
[ -n "$bridges" ] || allow "/sdn/zones/$zone" SmithNet
for bridge in $bridges; do
  case $bridge in
    */*) allow "/sdn/zones/$bridge" SmithNet ;;
    *) allow "/sdn/zones/$zone/$bridge" SmithNet ;;
  esac
done
for mapping in $mappings; do allow "/mapping/$mapping" SmithMapping; done
[ -z "$placement" ] || allow /nodes SmithNodes
[ -z "$backup" ] || allow /vms SmithBackup
[ -z "$cd_drive" ] || allow / SmithConsole
