#!/bin/sh
# Makes what Agent Smith needs in Proxmox VE 8 or 9, with the least privileges: roles, a user, an API token, and what they
# may touch. Run it as root on a node of the cluster. A second run changes nothing; it never takes anything away.
#
#   pveum-role.sh --storage local-lvm [--storage NAME]... [--images NAME]... [--zone NAME] [--user USER@REALM]
#                 [--token NAME] [--placement] [--backup] [--secret-file FILE] [--dry-run]
#
#   --storage NAME      where disks of VMs, their templates' and cloud-init's are; once for each
#   --images NAME       where ISO images and containers' templates are, if not on one of those; once for each
#   --zone NAME         the SDN zone of the VMs' bridge (default: localnetwork, that of plain bridges)
#   --user, --token     PROXMOX_USER and PROXMOX_TOKEN_ID (default: smith@pve, job)
#   --placement         let it see how full the nodes are, to put new VMs where room is (Sys.Audit on /nodes)
#   --backup            let it make backups of VMs (VM.Backup); PROXMOX_BACKUP_STORAGE is one of --storage
#   --secret-file FILE  write the token's secret there, readable by root alone, and do not print it
#   --dry-run           say what would be done, and do nothing
set -eu

user=smith@pve token=job storages='' images='' zone=localnetwork secret_file='' dry_run='' placement='' backup=''
vm_privileges='VM.Allocate VM.Audit VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk
  VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options VM.Migrate VM.PowerMgmt VM.Snapshot'

fail() {
  echo "pveum-role.sh: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"; }

# Names go into paths and command lines: only what Proxmox itself allows in them.
named() {
  case $2 in
    '' | *[!A-Za-z0-9@._/-]* | -*) fail "$1 needs a name of letters, digits and . _ - @, not '$2'" ;;
  esac
}

read_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry_run=yes && shift && continue ;;
      --placement) placement=yes && shift && continue ;;
      --backup) backup=yes && shift && continue ;;
      -h | --help) usage && exit 0 ;;
      --storage | --images | --zone | --user | --token | --secret-file) ;;
      *) fail "unknown argument '$1'; --help tells the others" ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value"
    named "$1" "$2"
    case $1 in
      --storage) storages="$storages $2" ;;
      --images) images="$images $2" ;;
      --zone) zone=$2 ;;
      --user) user=$2 ;;
      --token) token=$2 ;;
      --secret-file) secret_file=$2 ;;
    esac
    shift 2
  done
  [ -n "$storages" ] || fail "--storage is missing: no VM can be made without a disk"
  case $user in ?*@?*) ;; *) fail "--user needs a realm, such as smith@pve" ;; esac
}

# The privilege to ask the guest agent has another name in each; naming the other one makes pveum fail.
guest_privilege() {
  version=$(pveversion) || fail "pveversion does not answer: run this on a node of the cluster"
  version=${version#pve-manager/}
  case ${version%%.*} in
    8) echo VM.Monitor ;;
    9 | [1-9][0-9]) echo VM.GuestAgent.Audit ;;
    *) fail "this is for Proxmox VE 8 and 9, not '$version'" ;;
  esac
}

# list WHAT...: what pveum knows of it, on one line
list() {
  found=$(pveum "$1" ${3:+"$2"} list ${3:+"$3"} --output-format json) || fail "pveum $1 list failed"
  printf '%s' "$found" | tr -d ' \n'
}

# is_in LIST FIELD VALUE
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

# With privilege separation a token may do what both it and its user may, so both are named.
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
    echo "token $user!$token exists; its secret was told when it was made. Lost? pveum user token remove $user $token, and again" >&2
    return
  fi
  [ -z "$secret_file" ] || [ ! -e "$secret_file" ] || fail "$secret_file exists, and a new secret is to be written there"
  echo "+ pveum user token add $user $token --privsep 1" >&2
  [ -z "$dry_run" ] || return 0
  answer=$(pveum user token add "$user" "$token" --privsep 1 --output-format json) || fail "the token cannot be made"
  secret=$(printf '%s' "$answer" | tr -d ' \n' | sed -n 's/.*"value":"\([^"]*\)".*/\1/p')
  [ -n "$secret" ] || fail "the token was made, but pveum's answer has no secret; remove the token and try again"
  tell_secret
}

# printf is the shell's own: the secret is in no command line.
tell_secret() {
  if [ -n "$secret_file" ]; then
    (umask 077 && printf '%s\n' "$secret" >"$secret_file")
    echo "the token's secret is in $secret_file" >&2
  else
    echo "the token's secret, told only this once:" >&2
    printf '%s\n' "$secret"
  fi
}

read_arguments "$@"
command -v pveum >/dev/null || fail "no pveum here: run this as root on a node of the cluster"
guest=$(guest_privilege)
roles=$(list role)
users=$(list user)

# shellcheck disable=SC2086 # the lists are to be split into words
{
  make_role SmithVM $vm_privileges "$guest"
  make_role SmithStore Datastore.AllocateSpace Datastore.Audit
  make_role SmithNet SDN.Use
  [ -z "$images" ] || make_role SmithImages Datastore.Audit
  [ -z "$placement" ] || make_role SmithNodes Sys.Audit
  [ -z "$backup" ] || make_role SmithBackup VM.Backup
}
make_user
make_token
allow /vms SmithVM
for storage in $storages; do allow "/storage/$storage" SmithStore; done
for storage in $images; do allow "/storage/$storage" SmithImages; done
allow "/sdn/zones/$zone" SmithNet
[ -z "$placement" ] || allow /nodes SmithNodes
[ -z "$backup" ] || allow /vms SmithBackup
