/* SPDX-License-Identifier: MIT */
#include "caps/caps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/kernel_number.h"
#include "base/limit.h"
#include "base/macros.h"
#include "base/opts.h"
#include "base/vm_type.h"
#include "caps/probe_guest.h"
#include "caps/probe_slot.h"
#include "nofault/nofault.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"

#define KVM_PATH "/dev/kvm"

#define HOST_ACCESS_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

static const struct {
	const char *name;
	const char *title;
} line_names[] = {
	[GMEM_CAP_KVM] = { "kvm", "KVM" },
	[GMEM_CAP_USER_MEMORY2] = { "user-memory2", "KVM_SET_USER_MEMORY_REGION2" },
	[GMEM_CAP_MEMORY_FAULT_INFO] = { "memory-fault-info", "memory-fault exits" },
	[GMEM_CAP_MEMORY_ATTRIBUTES] = { "memory-attributes", "memory attributes" },
	[GMEM_CAP_GUEST_MEMFD] = { "guest-memfd", "guest_memfd" },
	[GMEM_CAP_VM_TYPES] = { "vm-types", "VM types" },
	[GMEM_CAP_PRE_FAULT] = { "pre-fault", "KVM_PRE_FAULT_MEMORY" },
	[GMEM_CAP_CREATE_FLAGS] = { "create-flags", "guest_memfd create flags" },
	[GMEM_CAP_MEMSLOTS] = { "memslots", "memslots" },
	[GMEM_CAP_ADDRESS_SPACES] = { "address-spaces", "address spaces" },
	[GMEM_CAP_READONLY] = { "readonly", "read-only memslots" },
	[GMEM_CAP_CREATE] = { "create", "creating a guest_memfd" },
	[GMEM_CAP_BIND] = { "bind", "binding it to a memslot" },
	[GMEM_CAP_HOST_ACCESS] = { "host-access", "host access to it" },
	[GMEM_CAP_PRIVATE_MEMORY] = { "private-memory", "private memory" },
	[GMEM_CAP_IN_PLACE] = { "in-place", "conversion in place" },
	[GMEM_CAP_DIRTY_LOG] = { "dirty-log", "dirty log" },
	[GMEM_CAP_ADDRESS_BITS] = { "address-bits", "guest address bits" },
	[GMEM_CAP_GUEST_USES_FILE] = { "guest-uses-file", "guest uses the file" },
	[GMEM_CAP_ARCHITECTURE] = { "architecture", "architecture" },
	[GMEM_CAP_PAGE_SIZE] = { "page-size", "page size" },
	[GMEM_CAP_NUMA_NODES] = { "numa-nodes", "NUMA nodes" },
	[GMEM_CAP_NUMA_POLICY] = { "numa-policy", "mbind reaches guest_memfd" },
	[GMEM_CAP_IO_URING] = { "io-uring", "io_uring" },
};

_Static_assert(GMEM_ARRAY_SIZE(line_names) == GMEM_CAP_COUNT, "every line has a name");

/* ---- lines ---- */

static void __attribute__((format(printf, 2, 0)))
set_reason(struct gmem_line *line, const char *format, va_list args)
{
	vsnprintf(line->reason, sizeof(line->reason), format, args);
}

static void __attribute__((format(printf, 3, 4)))
say_yes(struct gmem_caps *caps, enum gmem_cap cap, const char *format, ...)
{
	struct gmem_line *line = &caps->lines[cap];
	va_list args;

	line->answer = GMEM_YES;
	line->remedy = NULL;
	va_start(args, format);
	set_reason(line, format, args);
	va_end(args);
}

static void __attribute__((format(printf, 3, 4)))
say_unknown(struct gmem_caps *caps, enum gmem_cap cap, const char *format, ...)
{
	struct gmem_line *line = &caps->lines[cap];
	va_list args;

	line->answer = GMEM_UNKNOWN;
	line->remedy = NULL;
	va_start(args, format);
	set_reason(line, format, args);
	va_end(args);
}

static void __attribute__((format(printf, 4, 5)))
say_no(struct gmem_caps *caps, enum gmem_cap cap, const char *remedy, const char *format, ...)
{
	struct gmem_line *line = &caps->lines[cap];
	va_list args;

	line->answer = GMEM_NO;
	line->remedy = remedy;
	va_start(args, format);
	set_reason(line, format, args);
	va_end(args);
}

static void set_value(struct gmem_caps *caps, enum gmem_cap cap, int64_t value)
{
	caps->lines[cap].value = value;
	caps->lines[cap].has_value = 1;
}

bool gmem_caps_says(const struct gmem_caps *caps, enum gmem_cap cap, uint32_t answer)
{
	return caps->lines[cap].answer == answer;
}

uint64_t gmem_caps_value(const struct gmem_caps *caps, enum gmem_cap cap)
{
	return (uint64_t)caps->lines[cap].value;
}

static bool is_arm64(void)
{
	return strcmp(gmem_sys_architecture(), "arm64") == 0;
}

static bool is_vm_type_offered(const struct gmem_caps *caps, unsigned int type)
{
	return gmem_caps_value(caps, GMEM_CAP_VM_TYPES) >> type & 1;
}

/*
 * KVM does not tell a VM's type. Of those with private memory, two take the same answers
 * and SW_PROTECTED takes others, for which KVM_RUN would fail in the two. It is a type
 * for testing, so where all are offered the VM is taken for one of the two.
 */
uint64_t gmem_caps_vm_type(const struct gmem_caps *caps)
{
	if (caps->has_vm_type)
		return caps->vm_type;
	if (is_arm64() || (!gmem_caps_says(caps, GMEM_CAP_PRIVATE_MEMORY, GMEM_YES) &&
			   !gmem_caps_says(caps, GMEM_CAP_IN_PLACE, GMEM_YES)))
		return 0;
	if (is_vm_type_offered(caps, KVM_X86_SNP_VM))
		return KVM_X86_SNP_VM;
	if (is_vm_type_offered(caps, KVM_X86_TDX_VM))
		return KVM_X86_TDX_VM;
	return KVM_X86_SW_PROTECTED_VM;
}

void gmem_caps_set_vm_type(struct gmem_caps *caps, uint64_t vm_type)
{
	caps->has_vm_type = true;
	caps->vm_type = vm_type;
}

/* ---- remedies ---- */

#define NEEDS_6_8 "run Linux 6.8 or later, or a backport"
#define NEEDS_6_18 "run Linux 6.18 or later, or a backport"
#define NEEDS_PRIVATE_TYPE                                                            \
	"create the VM with a type that has private memory, on a kernel built for it"
#define NEEDS_POLICY                                                                  \
	"allow it in the security policy: SELinux, AppArmor or a seccomp filter"

/*
 * The kernel protects such a VM from the host. KVM_CHECK_EXTENSION has fewer yeses for it, of
 * which read-only memslots are one that every other VM on arm64 has.
 */
static bool is_pkvm(const struct gmem_caps *caps)
{
	return is_arm64() && caps->has_vm &&
	       (caps->vm_type & GMEM_VM_TYPE_PKVM || gmem_caps_says(caps, GMEM_CAP_READONLY, GMEM_NO));
}

/* No kernel refuses these calls for want of a permission, but a policy does. */
static bool is_policy(int err)
{
	return err == -EACCES || err == -EPERM;
}

/* Says no because of @err, with the remedy @otherwise unless a policy is behind it. */
static void say_refused(struct gmem_caps *caps, enum gmem_cap cap, int err, const char *otherwise,
			const char *what)
{
	/* pKVM has -EPERM for what it does not do. */
	if (is_policy(err) && !is_pkvm(caps))
		say_no(caps, cap, NEEDS_POLICY, "%s: %s, by a security policy", what,
		       gmem_errno_name(err));
	else
		say_no(caps, cap, otherwise, "%s: %s", what, gmem_errno_name(err));
}

/* ---- looking at the host ---- */

/* Counts the numbers of a list such as "0-1,4"; 0 if @text is no list. */
static int64_t count_list(const char *text)
{
	int64_t count = 0;

	while (*text >= '0' && *text <= '9') {
		char *end;
		long first = strtol(text, &end, 10), final = first;

		if (*end == '-')
			final = strtol(end + 1, &end, 10);
		if (final < first)
			return 0;
		count += final - first + 1;
		text = *end == ',' ? end + 1 : end;
	}
	return count;
}

static void ask_numa_nodes(struct gmem_caps *caps)
{
	char online[256];
	int64_t nodes = 0;

	if (gmem_sys_read_file("/sys/devices/system/node/online", online, sizeof(online)) > 0)
		nodes = count_list(online);

	if (nodes == 0) {
		say_unknown(caps, GMEM_CAP_NUMA_NODES, "/sys does not list the nodes online");
		return;
	}

	set_value(caps, GMEM_CAP_NUMA_NODES, nodes);
	if (nodes > 1)
		say_yes(caps, GMEM_CAP_NUMA_NODES, "%" PRId64 " nodes online", nodes);
	else
		say_no(caps, GMEM_CAP_NUMA_NODES, "use a machine with several nodes",
		       "one node: there is nothing to choose between");
}

/* The sysctl, or else a policy: they refuse it with the same errno. */
static void say_io_uring_is_forbidden(struct gmem_caps *caps, int err)
{
	uint64_t disabled;

	if (!gmem_kernel_number("/proc/sys/kernel", "io_uring_disabled", "\n", &disabled))
		disabled = 0;
	if (disabled == 0)
		say_refused(caps, GMEM_CAP_IO_URING, err, NULL, "io_uring_setup(2) is refused");
	else
		say_no(caps, GMEM_CAP_IO_URING,
		       disabled == 1 ? "join the group of sysctl kernel.io_uring_group, or set "
				       "kernel.io_uring_disabled to 0"
				     : "set sysctl kernel.io_uring_disabled to 0",
		       "sysctl kernel.io_uring_disabled is %" PRIu64, disabled);
}

static void ask_io_uring(struct gmem_caps *caps)
{
	int err = gmem_sys_ask_io_uring();

	if (!err)
		say_yes(caps, GMEM_CAP_IO_URING, "this process may use it");
	else if (is_policy(err))
		say_io_uring_is_forbidden(caps, err);
	else if (err == -ENOSYS)
		say_no(caps, GMEM_CAP_IO_URING, "run a kernel with CONFIG_IO_URING, or "
		       "allow it in the seccomp filter", "the kernel has none, or a seccomp filter hides it");
	else
		say_unknown(caps, GMEM_CAP_IO_URING, "asking for it failed: %s",
			    gmem_errno_name(err));
}

static void ask_host(struct gmem_caps *caps)
{
	uint64_t page = gmem_sys_page_size();

	say_yes(caps, GMEM_CAP_ARCHITECTURE, "%s", gmem_sys_architecture());
	set_value(caps, GMEM_CAP_PAGE_SIZE, (int64_t)page);
	say_yes(caps, GMEM_CAP_PAGE_SIZE,
		"%" PRIu64 " bytes: the unit of every size and offset", page);
	ask_numa_nodes(caps);
	ask_io_uring(caps);
}

/* ---- asking KVM ---- */

struct extension {
	enum gmem_cap line;
	long cap;
	bool differs_per_vm;	/* /dev/kvm answers only what is compiled in */
	const char *yes;
	const char *no;
	const char *remedy;
};

static const struct extension extensions[] = {
	{ GMEM_CAP_USER_MEMORY2, KVM_CAP_USER_MEMORY2, false,
	  "memslots are set with it", "KVM does not have the call", NEEDS_6_8 },
	{ GMEM_CAP_MEMORY_FAULT_INFO, KVM_CAP_MEMORY_FAULT_INFO, false,
	  "KVM says which access failed", "KVM does not say which access failed", NEEDS_6_8 },
	{ GMEM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_MEMORY_ATTRIBUTES, true,
	  "ranges can have attributes, such as private", "memory has no attributes",
	  NEEDS_PRIVATE_TYPE },
	{ GMEM_CAP_GUEST_MEMFD, KVM_CAP_GUEST_MEMFD, true,
	  "memslots can be backed by one", "memslots cannot be backed by one",
	  NEEDS_6_18 "; before, only VM types with private memory had it" },
	{ GMEM_CAP_PRE_FAULT, KVM_CAP_PRE_FAULT_MEMORY, true,
	  "guest page tables can be filled ahead", "KVM cannot fill guest page tables ahead",
	  "run Linux 6.11 or later, or a backport, on x86 with nested paging" },
	{ GMEM_CAP_READONLY, KVM_CAP_READONLY_MEM, false,
	  "for memslots without guest_memfd", "KVM does not have KVM_CAP_READONLY_MEM",
	  "run a KVM with KVM_CAP_READONLY_MEM" },
};

static void say_extension(struct gmem_caps *caps, const struct extension *ext, int value)
{
	/* Some kernels answer with a negative number, which arrives here as -errno. */
	set_value(caps, ext->line, value < 0 ? 0 : value);
	if (value < 1)
		say_no(caps, ext->line, ext->remedy, "%s", ext->no);
	else if (ext->differs_per_vm && !caps->has_vm)
		say_unknown(caps, ext->line, "compiled in; only a VM fd tells what a VM has");
	else
		say_yes(caps, ext->line, "%s", ext->yes);
}

static void name_vm_types(unsigned int mask, char *text, size_t size)
{
	size_t length = 0;

	text[0] = '\0';
	for (unsigned int type = 0; type < 32 && length < size; type++) {
		const char *name = gmem_vm_type_name(type, false), *comma = length ? ", " : "";

		if (!(mask >> type & 1))
			continue;
		length += (size_t)(name ? snprintf(text + length, size - length, "%s%s", comma, name)
					: snprintf(text + length, size - length, "%s%u", comma, type));
	}
}

static void ask_vm_types(struct gmem_caps *caps, int fd)
{
	int value = gmem_kvm_check(fd, KVM_CAP_VM_TYPES);
	char names[160];

	set_value(caps, GMEM_CAP_VM_TYPES, value < 0 ? 0 : value);
	name_vm_types((unsigned int)value, names, sizeof(names));
	if (is_arm64())
		say_unknown(caps, GMEM_CAP_VM_TYPES,
			    "not listed on arm64: a type is a number of address bits, or pKVM");
	else if (value < 1)
		say_no(caps, GMEM_CAP_VM_TYPES, NEEDS_6_8,
		       "KVM does not list them: only the default type is sure");
	else
		say_yes(caps, GMEM_CAP_VM_TYPES, "%s", names);
}

static void ask_numbers(struct gmem_caps *caps, int fd)
{
	int slots = gmem_kvm_check(fd, KVM_CAP_NR_MEMSLOTS);
	int spaces = gmem_kvm_check(fd, KVM_CAP_MULTI_ADDRESS_SPACE);

	/* KVM answers 0 if it never supported more than these. */
	slots = slots < 1 ? 32 : slots;
	spaces = spaces < 1 ? 1 : spaces;

	set_value(caps, GMEM_CAP_MEMSLOTS, slots);
	say_yes(caps, GMEM_CAP_MEMSLOTS, "%d in each address space", slots);
	set_value(caps, GMEM_CAP_ADDRESS_SPACES, spaces);
	say_yes(caps, GMEM_CAP_ADDRESS_SPACES, spaces > 1 ? "%d, each with its own memslots" : "%d, for all memslots", spaces);
}

static bool has_private_attribute(const struct gmem_caps *caps)
{
	return gmem_caps_value(caps, GMEM_CAP_MEMORY_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE;
}

static void ask_private_memory(struct gmem_caps *caps)
{
	if (has_private_attribute(caps) && !caps->has_vm)
		say_unknown(caps, GMEM_CAP_PRIVATE_MEMORY,
			    "compiled in; only a VM fd tells what a VM has");
	else if (has_private_attribute(caps))
		say_yes(caps, GMEM_CAP_PRIVATE_MEMORY, "ranges convert through VM attributes");
	else if (is_arm64())
		say_no(caps, GMEM_CAP_PRIVATE_MEMORY, "wait for a kernel that has one",
		       "arm64 has no VM type with memory that converts");
	else
		say_no(caps, GMEM_CAP_PRIVATE_MEMORY, NEEDS_PRIVATE_TYPE,
		       caps->has_vm ? "this VM has no private memory"
				    : "no type of VM has private memory here");
}

/*
 * Kernels that offer MMAP without INIT_SHARED do so for VMs with private memory. If the
 * VM has none, the kernel is Linux 6.18-rc1, in which MMAP meant shared. That is no basis
 * to build on.
 */
static bool is_ambiguous_mask(const struct gmem_caps *caps, uint64_t mask)
{
	return caps->has_vm && (mask & HOST_ACCESS_FLAGS) == GMEM_CREATE_MMAP &&
	       !has_private_attribute(caps);
}

static void ask_create_flags(struct gmem_caps *caps, int fd)
{
	int value = gmem_kvm_check(fd, KVM_CAP_GUEST_MEMFD_FLAGS);
	uint64_t mask = value < 0 ? 0 : (uint64_t)value;
	uint64_t others = mask & ~HOST_ACCESS_FLAGS;
	char names[80];

	set_value(caps, GMEM_CAP_CREATE_FLAGS, (int64_t)mask);
	snprintf(names, sizeof(names), "0x%" PRIx64 ":%s%s", mask,
		 mask & GMEM_CREATE_MMAP ? " MMAP" : "",
		 mask & GMEM_CREATE_INIT_SHARED ? " INIT_SHARED" : "");
	if (others)
		snprintf(names + strlen(names), sizeof(names) - strlen(names),
			 " and 0x%" PRIx64 ", unknown to libgmem %s", others, gmem_version());

	if (mask == 0)
		say_no(caps, GMEM_CAP_CREATE_FLAGS, NEEDS_6_18,
		       "none: a guest_memfd cannot be mapped or begin shared");
	else if (is_ambiguous_mask(caps, mask))
		say_no(caps, GMEM_CAP_CREATE_FLAGS, "run Linux 6.18 as released, or later",
		       "%s without private memory: a pre-release kernel on which MMAP meant shared",
		       names);
	else if (!caps->has_vm)
		say_unknown(caps, GMEM_CAP_CREATE_FLAGS, "%s, compiled in; a VM may have fewer",
			    names);
	else if (mask & GMEM_CREATE_INIT_SHARED)
		say_yes(caps, GMEM_CAP_CREATE_FLAGS, "%s", names);
	else
		say_yes(caps, GMEM_CAP_CREATE_FLAGS,
			"%s: can be mapped, but begins private and is out of the host's reach",
			names);
}

/* Some arm64 kernels say 0, but fill these exits in all the same. */
static void doubt_memory_fault_info(struct gmem_caps *caps)
{
	if (gmem_caps_says(caps, GMEM_CAP_MEMORY_FAULT_INFO, GMEM_NO) &&
	    gmem_caps_value(caps, GMEM_CAP_GUEST_MEMFD) > 0)
		say_unknown(caps, GMEM_CAP_MEMORY_FAULT_INFO,
			    "KVM says 0, yet kernels with guest_memfd may fill these exits in");
}

static void ask_kvm(struct gmem_caps *caps, int fd)
{
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(extensions); i++)
		say_extension(caps, &extensions[i], gmem_kvm_check(fd, extensions[i].cap));

	ask_vm_types(caps, fd);
	ask_numbers(caps, fd);
	ask_private_memory(caps);
	ask_create_flags(caps, fd);
	doubt_memory_fault_info(caps);
}

/* Sets every line before anything is asked, so that no line can be forgotten. */
static void start_report(struct gmem_caps *caps, const char *reason)
{
	for (size_t i = 0; i < GMEM_CAP_COUNT; i++)
		say_unknown(caps, (enum gmem_cap)i, "%s", reason);

	say_unknown(caps, GMEM_CAP_IN_PLACE,
		    "no kernel had it when this version was written");
}

/* A limit was in the way; of KVM that says nothing. */
static void say_kvm_unknown(struct gmem_caps *caps, int err)
{
	char limit[GMEM_LIMIT_TEXT];

	gmem_limit_describe(err, 0, limit);
	for (uint32_t cap = GMEM_CAP_KVM; cap < GMEM_CAP_ARCHITECTURE; cap++)
		if (cap != GMEM_CAP_IN_PLACE)
			say_unknown(caps, (enum gmem_cap)cap, KVM_PATH " cannot be opened until a limit is raised or room made: %s", limit);
}

static bool file_has(const char *path, const char *text)
{
	char content[2048];

	return gmem_sys_read_file(path, content, sizeof(content)) > 0 && strstr(content, text);
}

/* What to do about an error of opening KVM_PATH, or, if it @opened, of asking what is there */
static const char *kvm_remedy(int err, bool opened)
{
	if (opened && is_policy(err))
		return NEEDS_POLICY;
	if (err == -EACCES)
		return "join group kvm: sudo usermod -aG kvm $USER, then log in again; if that is so, "
		       NEEDS_POLICY;
	if (err == -EPERM)
		return "give " KVM_PATH " to the container, or " NEEDS_POLICY;
	if (err == -EBUSY)
		return "stop the other hypervisor that has the processor, such as VirtualBox or VMware";
	if (err != -ENOENT && err != -ENODEV && err != -ENXIO)
		return "make sure that " KVM_PATH " is the KVM device";
	/* Kernels list their drivers there, also for processes in containers. */
	if (file_has("/proc/misc", " kvm\n"))
		return err == -ENOENT ? "give " KVM_PATH " to the container: the kernel has it"
		       : "make the node " KVM_PATH " anew, with the numbers in /sys/class/misc/kvm/dev";
	if (is_arm64())
		return "boot the kernel at EL2: in a VM, that needs nested virtualisation";
	return "load the module kvm_intel or kvm_amd; virtualisation must be on in the firmware, "
	       "and nested if this is a VM";
}

static void say_no_kvm(struct gmem_caps *caps, int err, bool opened)
{
	const char *remedy = kvm_remedy(err, opened);

	say_no(caps, GMEM_CAP_KVM, remedy, "%s: %s",
	       is_policy(err) && opened ? "a security policy forbids to use " KVM_PATH
	       : is_policy(err) ? "no permission to open " KVM_PATH
	       : err == -ENOENT ? "there is no " KVM_PATH
	       : err == -ENOTTY || err == -EISDIR ? KVM_PATH " is not KVM"
	       : err == -ENODEV || err == -ENXIO ? KVM_PATH " is a node without a driver"
						 : KVM_PATH " cannot be used",
	       gmem_errno_name(err));

	/* The lines that need KVM, to ask it or to try something with it */
	for (uint32_t cap = GMEM_CAP_KVM + 1; cap < GMEM_CAP_ARCHITECTURE; cap++) {
		if (cap == GMEM_CAP_IN_PLACE)
			continue;
		if (is_policy(err))
			say_unknown(caps, (enum gmem_cap)cap, "no permission to ask KVM");
		else
			say_no(caps, (enum gmem_cap)cap, remedy, "there is no KVM");
	}
}

/* ---- trying things in the VM ---- */

static bool offers_gmemfd(const struct gmem_caps *caps)
{
	return gmem_caps_value(caps, GMEM_CAP_GUEST_MEMFD) > 0 &&
	       !gmem_caps_says(caps, GMEM_CAP_CREATE_FLAGS, GMEM_NO);
}

/* Returns the create flags that a plan would choose here: the ones worth trying. */
static uint64_t flags_to_try(const struct gmem_caps *caps)
{
	uint64_t mask = gmem_caps_value(caps, GMEM_CAP_CREATE_FLAGS);

	mask &= HOST_ACCESS_FLAGS;
	if (!offers_gmemfd(caps))
		return 0;
	if (has_private_attribute(caps) && mask != HOST_ACCESS_FLAGS)
		return 0;
	return mask;
}

static int refusal(int err)
{
	return is_policy(err) || err == -ENOSYS ? err : 0;
}

/* Tries calls on a page that has no use: sets the policy that it has, and the advice of all memory. */
static void try_calls(struct gmem_caps *caps)
{
	const uint64_t page = gmem_sys_page_size(), no_nodes = 0;
	void *addr;

	if (gmem_sys_mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &addr))
		return;
	caps->mbind_refusal = refusal(gmem_sys_mbind(addr, page, MPOL_DEFAULT, &no_nodes, 64));
	caps->madvise_refusal = refusal(gmem_sys_madvise(addr, page, MADV_DONTDUMP));
	gmem_sys_munmap(addr, page);
}

static void try_numa_policy(struct gmem_caps *caps, int gmemfd)
{
	uint64_t type;
	int err = gmem_sys_filesystem_type(gmemfd, &type);

	if (caps->mbind_refusal)
		say_refused(caps, GMEM_CAP_NUMA_POLICY, caps->mbind_refusal,
			    "run a kernel with CONFIG_NUMA, or allow mbind(2) in the seccomp filter",
			    "mbind(2) is refused");
	else if (err)
		say_unknown(caps, GMEM_CAP_NUMA_POLICY, "statfs(2) of a guest_memfd failed: %s",
			    gmem_errno_name(err));
	else if (type == GUEST_MEMFD_MAGIC)
		say_yes(caps, GMEM_CAP_NUMA_POLICY, "its pages go where mbind(2) said before first use");
	else
		say_no(caps, GMEM_CAP_NUMA_POLICY, "run Linux 6.19 or later, or a backport",
		       "mbind(2) succeeds, but pages of a guest_memfd do not follow it");
}

static void try_host_access(struct gmem_caps *caps, int gmemfd, uint64_t flags)
{
	uint64_t page = gmem_sys_page_size();
	void *hva;
	int err;

	if ((flags & HOST_ACCESS_FLAGS) != HOST_ACCESS_FLAGS) {
		bool private = has_private_attribute(caps);

		say_no(caps, GMEM_CAP_HOST_ACCESS, private ? "use a VM without private memory" : NEEDS_6_18,
		       private ? "private memory is out of the host's reach"
			       : "a guest_memfd cannot begin shared here");
		return;
	}

	err = gmem_sys_mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, gmemfd, 0, &hva);
	if (!err) {
		/* Populating fails with -EFAULT if a load would raise SIGBUS. */
		err = gmem_sys_madvise(hva, page, MADV_POPULATE_WRITE);
		/* A sandbox that refuses the advice does not forbid access. */
		if (err == -EPERM || err == -ENOSYS)
			err = gmem_nofault_probe_write(hva, sizeof(uint32_t));
		gmem_sys_munmap(hva, page);
	}

	if (!err)
		say_yes(caps, GMEM_CAP_HOST_ACCESS, "a page was mapped and made writable");
	else if (err == -EFAULT || err == -ENODEV || is_policy(err))
		say_refused(caps, GMEM_CAP_HOST_ACCESS, err, NEEDS_6_18, "mapping it, or writing there, is refused");
	else
		say_unknown(caps, GMEM_CAP_HOST_ACCESS, "mapping a page failed: %s",
			    gmem_errno_name(err));
}

static void try_bind(struct gmem_caps *caps, struct gmem_probe_slot *probe, int gmemfd)
{
	int err = gmem_probe_slot_try_gmemfd(probe, gmemfd, 0);

	if (!err)
		say_yes(caps, GMEM_CAP_BIND, "a page was bound and released");
	else if (err == -ENOMEM)
		say_unknown(caps, GMEM_CAP_BIND, "no memory to try it with");
	else
		say_refused(caps, GMEM_CAP_BIND, err,
			    caps->lines[GMEM_CAP_GUEST_MEMFD].remedy
				    ? caps->lines[GMEM_CAP_GUEST_MEMFD].remedy
				    : "make the VM without features that exclude guest_memfd",
			    "the kernel refuses the memslot");
}

/* KVM makes and binds them, and then fails KVM_RUN with -EIO, as seen in Linux 7.3. */
static void deny_gmemfd(struct gmem_caps *caps)
{
	static const enum gmem_cap lines[] = { GMEM_CAP_GUEST_MEMFD, GMEM_CAP_CREATE, GMEM_CAP_BIND,
					       GMEM_CAP_HOST_ACCESS };

	set_value(caps, GMEM_CAP_GUEST_MEMFD, 0);
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(lines); i++)
		say_no(caps, lines[i], "use host memory, or a VM that is not protected",
		       "a pKVM guest does not run on one, though KVM binds it");
}

static void try_gmemfd(struct gmem_caps *caps, int vm_fd, struct gmem_probe_slot *probe)
{
	static const enum gmem_cap lines[] = { GMEM_CAP_CREATE, GMEM_CAP_BIND, GMEM_CAP_HOST_ACCESS,
					       GMEM_CAP_NUMA_POLICY };
	uint64_t flags = flags_to_try(caps);
	int fd = gmem_kvm_create_gmemfd(vm_fd, gmem_sys_page_size(), flags);
	char limit[GMEM_LIMIT_TEXT];

	if (gmem_is_about_limit(fd)) {
		gmem_limit_describe(fd, 0, limit);
		for (uint32_t i = 0; i < GMEM_ARRAY_SIZE(lines); i++)
			say_unknown(caps, lines[i], "no guest_memfd could be had to try it with: %s", limit);
		return;
	}

	if (fd < 0) {
		const char *remedy = caps->lines[GMEM_CAP_GUEST_MEMFD].remedy;

		remedy = is_policy(fd) ? NEEDS_POLICY : remedy ? remedy : NEEDS_6_18;
		say_refused(caps, GMEM_CAP_CREATE, fd, remedy, "the kernel refuses");
		say_no(caps, GMEM_CAP_BIND, remedy, "there is no guest_memfd to bind");
		say_no(caps, GMEM_CAP_HOST_ACCESS, remedy, "there is no guest_memfd to map");
		say_no(caps, GMEM_CAP_NUMA_POLICY, remedy, "there is no guest_memfd to place");
		return;
	}
	gmem_sys_set_cloexec(fd);

	set_value(caps, GMEM_CAP_CREATE, (int64_t)flags);
	if (gmem_caps_value(caps, GMEM_CAP_GUEST_MEMFD) > 0)
		say_yes(caps, GMEM_CAP_CREATE, "one was made with flags 0x%" PRIx64, flags);
	else
		say_yes(caps, GMEM_CAP_CREATE, "one was made, for a VM that cannot use it");
	try_numa_policy(caps, fd);
	try_host_access(caps, fd, flags);
	if (probe)
		try_bind(caps, probe, fd);
	gmem_sys_close(fd);
}

/*
 * With both, KVM reads bitmaps as it does without a ring. Resetting the rings of a VM
 * that has none is refused, and otherwise only does early what the VMM asks for.
 */
static bool has_ring_beside_bitmaps(int vm_fd)
{
	return gmem_kvm_check(vm_fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0 &&
	       gmem_kvm_reset_dirty_rings(vm_fd) >= 0;
}

static void try_dirty_log(struct gmem_caps *caps, struct gmem_probe_slot *probe)
{
	int err = gmem_probe_slot_try_dirty_log(probe);

	if (err == -ENXIO) {
		set_value(caps, GMEM_CAP_DIRTY_LOG, GMEM_DIRTY_RING);
		say_yes(caps, GMEM_CAP_DIRTY_LOG,
			"in this VM's dirty rings, for memslots without guest_memfd; there are no bitmaps");
	} else if (!err && has_ring_beside_bitmaps(probe->vm_fd)) {
		set_value(caps, GMEM_CAP_DIRTY_LOG, GMEM_DIRTY_RING_AND_BITMAP);
		say_yes(caps, GMEM_CAP_DIRTY_LOG,
			"vCPUs' writes are in this VM's dirty rings, others in the memslots' bitmaps");
	} else if (!err) {
		say_yes(caps, GMEM_CAP_DIRTY_LOG, "read from a memslot without guest_memfd");
	} else if (err == -ENOMEM) {
		say_unknown(caps, GMEM_CAP_DIRTY_LOG, "no memory to try it with");
	} else {
		say_refused(caps, GMEM_CAP_DIRTY_LOG, err, "run a KVM that logs writes",
			    "the kernel refuses a memslot with a dirty log");
	}
}

static int try_vm(struct gmem_caps *caps, int vm_fd)
{
	struct gmem_probe_slot probe;
	int err;

	try_calls(caps);
	err = gmem_probe_slot_open(&probe, vm_fd, 0);

	if (err == -EIO || err == -EBADF || err == -ENOTTY)
		return gmem_fail(err, "VM fd %d refuses memslots: %s", vm_fd, gmem_errno_name(err));

	if (err) {
		static const enum gmem_cap lines[] = { GMEM_CAP_BIND, GMEM_CAP_DIRTY_LOG,
						       GMEM_CAP_ADDRESS_BITS };

		for (size_t i = 0; i < GMEM_ARRAY_SIZE(lines); i++)
			say_unknown(caps, lines[i], "no memslot could be had to try it with: %s",
				    gmem_errno_name(err));
		try_gmemfd(caps, vm_fd, NULL);
		return 0;
	}

	set_value(caps, GMEM_CAP_ADDRESS_BITS, probe.address_bits);
	say_yes(caps, GMEM_CAP_ADDRESS_BITS, "the highest memslot accepted ends at bit %" PRIu32,
		probe.address_bits);
	try_dirty_log(caps, &probe);
	try_gmemfd(caps, vm_fd, &probe);
	gmem_probe_slot_close(&probe);
	return 0;
}

/* ---- running a guest ---- */

static void say_probe_result(struct gmem_caps *caps, const struct gmem_probe_result *result)
{
	bool file = result->load_from_file && result->store_to_file;
	bool any_hva = result->load_from_hva || result->store_to_hva;

	if (file && !any_hva)
		say_yes(caps, GMEM_CAP_GUEST_USES_FILE,
			"a guest loaded and stored there, past another host address");
	else
		say_no(caps, GMEM_CAP_GUEST_USES_FILE,
		       "run KVM with nested paging; where the host address maps the file, it is harmless",
		       "%s the host address beside it, though a file was bound",
		       !result->store_to_hva ? "loads met" : result->load_from_hva ? "loads and stores met"
									: "stores met");

	if (result->fault_exit)
		say_yes(caps, GMEM_CAP_MEMORY_FAULT_INFO, "one came when the guest's file was gone");
}

static void describe_run(const struct gmem_probe_result *result, char *text, size_t size)
{
	if (result->run_err == -EPROTO)
		snprintf(text, size, "KVM_RUN ended with exit %u", result->strange_exit);
	else
		snprintf(text, size, "KVM_RUN failed with %s", gmem_errno_name(result->run_err));
}

/* Runs the guest without the file, too, to know whether the file is in its way. */
static void say_guest_stopped(struct gmem_caps *caps, int kvm_fd, uint64_t vm_type,
			      const struct gmem_probe_result *result)
{
	struct gmem_probe_result plain;
	char how[60];
	int err;

	describe_run(result, how, sizeof(how));
	err = gmem_probe_guest(kvm_fd, vm_type, 0, GMEM_PROBE_HOST, &plain);
	if (err || plain.run_err) {
		say_unknown(caps, GMEM_CAP_GUEST_USES_FILE,
			    "no guest runs in such a VM, with or without the file: %s", how);
		return;
	}

	for (uint32_t i = 0; i < 2; i++)
		say_no(caps, i ? GMEM_CAP_BIND : GMEM_CAP_GUEST_USES_FILE,
		       "use host memory, or a type of VM whose guests run on guest_memfd",
		       "guests run here without the file in a memslot, but not with it: %s", how);
}

static void run_guest(struct gmem_caps *caps, int kvm_fd, uint64_t vm_type, bool is_private)
{
	uint64_t flags = flags_to_try(caps);
	bool must_convert = is_private && !(flags & GMEM_CREATE_INIT_SHARED);
	struct gmem_probe_result result;
	int err;

	err = gmem_probe_guest(kvm_fd, vm_type, flags,
			       must_convert ? GMEM_PROBE_PRIVATE : GMEM_PROBE_SHARED, &result);
	if (err)
		say_unknown(caps, GMEM_CAP_GUEST_USES_FILE, "a guest could not be made: %s",
			    gmem_errno_name(err));
	else if (result.run_err)
		say_guest_stopped(caps, kvm_fd, vm_type, &result);
	else
		say_probe_result(caps, &result);
}

static void ask_guest(struct gmem_caps *caps, int kvm_fd)
{
	bool is_private = has_private_attribute(caps);
	const char *type = gmem_vm_type_name(caps->vm_type, is_arm64());

	if (!offers_gmemfd(caps) && !is_private)
		say_no(caps, GMEM_CAP_GUEST_USES_FILE,
		       is_pkvm(caps) ? caps->lines[GMEM_CAP_GUEST_MEMFD].remedy : NEEDS_6_18,
		       "there is no file to use");
	/* The default type stands in for an unknown one, but cannot have private memory. */
	else if (is_private && !caps->has_vm_type)
		say_unknown(caps, GMEM_CAP_GUEST_USES_FILE,
			    "the VM's type was not told, so no VM like it could be made");
	else if (!gmem_vm_type_is_plain(caps->vm_type, is_arm64()))
		say_unknown(caps, GMEM_CAP_GUEST_USES_FILE,
			    "not tried: %s guests need more than memory to run", type ? type : "such");
	else
		run_guest(caps, kvm_fd, caps->vm_type, is_private);
}

/* ---- the report ---- */

int gmem_caps_check_vm(int vm_fd)
{
	int err;

	if (gmem_sys_ioctl(vm_fd, KVM_GET_API_VERSION, NULL) >= 0)
		return gmem_fail(-EINVAL, "fd %d is " KVM_PATH " itself, not a VM", vm_fd);

	err = gmem_kvm_check(vm_fd, KVM_CAP_USER_MEMORY);
	if (err < 0)
		return gmem_fail(err, "fd %d is not a VM's, or not usable from this process: %s",
				 vm_fd, gmem_errno_name(err));
	return 0;
}

static int ask_vm(struct gmem_caps *caps, int vm_fd, uint64_t flags)
{
	int err = gmem_caps_check_vm(vm_fd);

	if (err)
		return err;

	say_yes(caps, GMEM_CAP_KVM, "there is a VM, and it answers");
	ask_kvm(caps, vm_fd);
	if (!(flags & GMEM_CAPS_NO_SELFTEST))
		err = try_vm(caps, vm_fd);
	else
		err = 0;
	if (is_pkvm(caps))
		deny_gmemfd(caps);
	return err;
}

static void ask_system(struct gmem_caps *caps, int kvm_fd)
{
	int version = gmem_sys_ioctl(kvm_fd, KVM_GET_API_VERSION, NULL);

	if (version < 0) {
		say_no_kvm(caps, version, true);
		return;
	}

	set_value(caps, GMEM_CAP_KVM, version);
	if (version != KVM_API_VERSION) {
		say_no(caps, GMEM_CAP_KVM, "run a kernel with KVM API version 12",
		       "API version %d is not the one everybody speaks", version);
		return;
	}

	say_yes(caps, GMEM_CAP_KVM, "API version %d", version);
	ask_kvm(caps, kvm_fd);
}

static int fill(struct gmem_caps *caps, int vm_fd, const struct gmem_caps_opts *opts)
{
	bool need_kvm = !caps->has_vm || (opts->flags & GMEM_CAPS_RUN_GUEST);
	bool opened = false;
	int kvm_fd = -ENOENT, err = 0;

	start_report(caps, caps->has_vm ? "not tried: no self-test was asked for"
					: "only a VM fd can answer");
	ask_host(caps);
	if (caps->has_vm)
		err = ask_vm(caps, vm_fd, opts->flags);
	if (err || !need_kvm)
		return err;

	if (opts->flags & GMEM_CAPS_KVM_FD) {
		kvm_fd = opts->kvm_fd;
	} else {
		kvm_fd = gmem_sys_open(KVM_PATH, O_RDWR);
		opened = kvm_fd >= 0;
	}

	if (caps->has_vm && kvm_fd >= 0)
		ask_guest(caps, kvm_fd);
	else if (caps->has_vm)
		say_unknown(caps, GMEM_CAP_GUEST_USES_FILE, "no " KVM_PATH " to make a VM with: %s",
			    gmem_errno_name(kvm_fd));
	else if (kvm_fd >= 0)
		ask_system(caps, kvm_fd);
	else if (gmem_is_about_limit(kvm_fd))
		say_kvm_unknown(caps, kvm_fd);
	else
		say_no_kvm(caps, kvm_fd, false);

	if (opened)
		gmem_sys_close(kvm_fd);
	return 0;
}

GMEM_API int gmem_caps_new(int vm_fd, const struct gmem_caps_opts *user_opts,
			   struct gmem_caps **ret)
{
	struct gmem_caps_opts opts;
	struct gmem_caps *caps;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "no place for the report: ret is NULL");

	err = GMEM_COPY_OPTS(gmem_caps_opts, &opts, user_opts, reserved);
	if (err)
		return err;

	err = gmem_check_flags("flags", opts.flags,
			       GMEM_CAPS_KVM_FD | GMEM_CAPS_VM_TYPE | GMEM_CAPS_NO_SELFTEST |
				       GMEM_CAPS_RUN_GUEST);
	if (err)
		return err;

	if (opts.reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts.reserved);

	if (vm_fd < 0 && vm_fd != GMEM_NO_VM)
		return gmem_fail(-EBADF, "%d is no fd", vm_fd);

	caps = calloc(1, sizeof(*caps));
	if (!caps)
		return gmem_fail(-ENOMEM, "no memory for a report");

	caps->has_vm = vm_fd != GMEM_NO_VM;
	if (opts.flags & GMEM_CAPS_VM_TYPE)
		gmem_caps_set_vm_type(caps, opts.vm_type);
	err = fill(caps, vm_fd, &opts);
	if (err) {
		free(caps);
		return err;
	}

	*ret = caps;
	return 0;
}

GMEM_API void gmem_caps_free(struct gmem_caps *caps)
{
	free(caps);
}

GMEM_API int gmem_caps_get(const struct gmem_caps *caps, uint32_t cap, struct gmem_finding *ret)
{
	const struct gmem_line *line;

	if (!caps || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", caps ? "ret" : "caps");

	if (cap >= GMEM_CAP_COUNT)
		return gmem_fail(-ENOENT, "a report of libgmem %s has lines 0 to %d, not %" PRIu32,
				 gmem_version(), GMEM_CAP_COUNT - 1, cap);

	line = &caps->lines[cap];
	*ret = (struct gmem_finding){
		.name = line_names[cap].name,
		.title = line_names[cap].title,
		.reason = line->reason,
		.remedy = line->remedy,
		.value = line->value,
		.answer = line->answer,
		.has_value = line->has_value,
	};
	return 0;
}
