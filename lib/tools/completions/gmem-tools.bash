# SPDX-License-Identifier: MIT
# Completion of gmem-probe, gmem-show and gmem-image for bash.
# The options are those that the program's --help has.

_gmem_files() {
	compopt -o filenames 2>/dev/null
	mapfile -t COMPREPLY < <(compgen -f -- "$1")
}

_gmem_words() {
	mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

_gmem_options() {
	local program=${1/#\~\//$HOME/}

	"$program" --help 2>/dev/null | sed -n 's/^  \(-[a-zA-Z], \)\{0,1\}\(--[a-z-]*=\{0,1\}\).*/\2/p'
}

# What --require takes, as the program lists it
_gmem_required() {
	local program=${1/#\~\//$HOME/}

	"$program" --host --require "?" 2>&1 >/dev/null | sed -n 's/^Ways of backing: \(.*\)\. Findings: \(.*\)\.$/\1 \2/p'
}

# _gmem_argument OPTION WORD PROGRAM: what may follow an option, or nothing that is known; returns 1 if that is for no option.
_gmem_argument() {
	case $1 in
	--color) _gmem_words "auto always never" "$2" ;;
	--vm-type)
		case $HOSTTYPE in
		aarch64) _gmem_words "default pkvm" "$2" ;;
		*) _gmem_words "default sw-protected sev sev-es snp tdx" "$2" ;;
		esac
		;;
	--require) _gmem_words "$(_gmem_required "$3")" "$2" ;;
	--kvm | --socket | --output | --parent) _gmem_files "$2" ;;
	--offset | --watch | --width | --workers) COMPREPLY=() ;;
	*) return 1 ;;
	esac
}

# Prints gmem-image's command, if there is one before the word.
_gmem_command() {
	local word

	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $word in info | regions | verify | merge | diff) echo "$word"; return ;; esac
	done
}

# The options that gmem-image's command, or any, has
_gmem_options_here() {
	case $(_gmem_command) in
	verify) _gmem_options "$1" | grep -vx -e --json -e --output -e --parent -e --quiet ;;
	merge) _gmem_options "$1" | grep -vx -e --json -e --parent -e --quiet ;;
	diff) _gmem_options "$1" | grep -vx -e --output ;;
	info | regions)
		_gmem_options "$1" | grep -vx -e --allow-lost -e --workers -e --output -e --parent -e --quiet
		;;
	*) _gmem_options "$1" ;;
	esac
}

_gmem_tools() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}

	# bash makes three words of --color=auto.
	if [ "$word" = "=" ]; then
		word=
	elif [ "$before" = "=" ]; then
		before=${COMP_WORDS[COMP_CWORD - 2]}
	fi

	COMPREPLY=()
	_gmem_argument "$before" "$word" "$1" && return
	if [[ $word == -* ]]; then
		_gmem_words "$(_gmem_options_here "$1")" "$word"
		[[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace 2>/dev/null
	elif [[ ${1##*/} == gmem-image ]] && [[ -z $(_gmem_command) ]]; then
		_gmem_words "info regions verify merge diff" "$word"
	elif [[ ${1##*/} != gmem-probe ]]; then
		_gmem_files "$word"
	fi
	return 0
}

complete -F _gmem_tools gmem-probe gmem-show gmem-image
