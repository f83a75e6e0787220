/* SPDX-License-Identifier: MIT */
/*
 * libgmem: guest memory for KVM virtual machines.
 *
 * Modules, lowest layer first; each can be used without the ones after it:
 *
 *   errors                gmem_last_error(), gmem_version()
 *   ways of backing       gmem_backing: the five ways, and their names
 *   kinds of memory       gmem_kind: RAM, ROM, memory of devices, contents elsewhere
 *   recovery              gmem_recovery_enable(): SIGBUS and SIGSEGV become errors
 *   capability report     gmem_caps: what a VM or a host supports, and why not
 *   plans                 gmem_plan: from what you need to exact kernel flags
 *   guest_memfd files     gmem_file: create, adopt, map, allocate, punch
 *   VMs                   gmem_vm: a VM fd you own, and its memslots
 *   regions               gmem_region: guest addresses with memory behind them
 *   regions, found again  gmem_vm_regions(): what a region is, by gpa, slot or hva
 *   RAM layout            gmem_ram_layout(): where the RAM of a machine goes
 *   shared and private    gmem_vm_state(): which memory the host can reach
 *   leases                gmem_lease: keeps a range shared while it is in use
 *   listeners             gmem_listener: callbacks on memory that comes, goes, changes
 *   views                 gmem_view: one thread translates, reads and writes
 *   layout changes        gmem_change: several regions changed at once, or none
 *   conversion            gmem_vm_convert(): shared to private, and back
 *   exits                 gmem_exit: what a vCPU's exit says about memory
 *   vCPUs                 gmem_vcpu: handles a vCPU's exits, pre-faults memory
 *   NUMA                  gmem_vm_set_numa(): which nodes memory comes from
 *   populate and discard  gmem_vm_populate(), gmem_vm_discard()
 *   statistics            gmem_stats: how much memory is what, and counters
 *   dumps                 gmem_vm_dump(): a VM's memory at one moment, as JSON
 *   dirty memory          gmem_dirty: which pages changed, whoever changed them
 *   transfers             gmem_transfer: guest memory from files and to files
 *   migration             gmem_migration: memory sent while the VM runs
 *   exports               gmem_export, gmem_peer: memory for other processes
 *   imports               gmem_import: another process's VM's memory, without KVM
 *
 * Conventions:
 *
 *   Functions that can fail return 0 (or a count) or a negative errno; errno
 *   itself means nothing. On failure nothing has changed and outputs are
 *   untouched, except where a function says so, and gmem_last_error() returns a
 *   sentence saying what was refused and why.
 *   Sizes, offsets and addresses are in bytes. Ranges are half-open,
 *   [start, start + size). "Page" is the host page: sysconf(_SC_PAGESIZE).
 *   "Source:" names the kernel interface that a function stands on.
 *   Each function says how it may be called: "Thread-safe", or "One thread at
 *   a time per object; different objects in parallel".
 *   What is made of a VM's handle, and freed with a function of its own, may outlive
 *   the handle: views, leases, listeners, changes, jobs, trackers, transfers, vCPUs'
 *   records, exports and their peers; so may views of an import outlive the import. After
 *   gmem_vm_free() it can still be freed, and says what it did and what to poll:
 *   gmem_populate_result(), gmem_transfer_get_result(), gmem_transfer_complete(),
 *   gmem_transfer_fd() and gmem_export_fd() go on. Every other call with it returns
 *   -ESTALE, and none touches memory that is gone: a view that is between begin and
 *   end meanwhile keeps it, see gmem_vm_free(). Regions, and pointers to what a VM or a
 *   region has, end with the handle.
 *   A child of fork(2) may call the library only if no other thread of its parent was
 *   inside a call at the fork; otherwise it may use the views that its thread has
 *   already, and must end with _exit(2) or execve(2): see gmem-sandbox(7).
 *   Work on a range of guest memory waits for other work on the range that came
 *   before it: "Waiting", at struct gmem_vm_opts, says for what, and how long. A call
 *   from inside a listener's callback that would have to wait for this callback
 *   fails with -EDEADLK: see struct gmem_listener_opts.
 */
#ifndef GMEM_H
#define GMEM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GMEM_VERSION_MAJOR 0
#define GMEM_VERSION_MINOR 1
#define GMEM_VERSION_PATCH 0

#if defined(__GNUC__)
#define GMEM_API __attribute__((visibility("default")))
#define GMEM_CHECKED __attribute__((warn_unused_result))
#else
#define GMEM_API
#define GMEM_CHECKED
#endif

/*
 * Functions marked GMEM_INLINE are inline in C and C++, and the library exports
 * them, too, for other languages. For a generator of bindings, and only there,
 * define GMEM_INLINE as GMEM_API: a program compiled so would define the
 * functions itself.
 */
#ifndef GMEM_INLINE
#define GMEM_INLINE static inline
#endif

/**
 * GMEM_OPTS() - declare an options struct with its size filled in
 * @type: struct name without "struct"
 * @name: variable to declare
 * @...: designated initialisers; every field left out is zero, its default
 *
 * For C only. In C++ value-initialise the struct (`gmem_vm_opts opts{};`), then
 * set its size member to sizeof(opts). Before C23, compilers that are asked to be
 * pedantic want at least one initialiser, such as `.flags = 0`.
 */
#define GMEM_OPTS(type, name, ...) \
	struct type name = { .size = sizeof(struct type), __VA_ARGS__ }

/*
 * Every options struct begins with its size. A struct from a newer header is
 * accepted as long as the fields this library does not know are zero (-E2BIG
 * otherwise); one smaller than its first version is -EINVAL.
 */

struct gmem_caps;
struct gmem_plan;
struct gmem_file;
struct gmem_vm;
struct gmem_region;
struct gmem_change;
struct gmem_export;
struct gmem_peer;
struct gmem_import;
struct gmem_lease;
struct gmem_listener;
struct gmem_populate;
struct gmem_vcpu;
struct gmem_transfer;
struct gmem_dirty;
struct gmem_migration;
struct gmem_dirty_pages;

/* From <linux/kvm.h> and <liburing.h>, which this header does not need */
struct kvm_run;
struct io_uring;

/* ---------------------------------------------------------------- errors -- */

/**
 * gmem_last_error() - describe the last failure in this thread
 *
 * The sentence is English, has no newline, and gives the numbers involved. If a limit
 * of the process or of the host is reached, it names that and its number:
 * RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK and RLIMIT_FSIZE, fs.file-max,
 * vm.max_map_count, the commit limit, memory.max and memory.high of a cgroup, huge
 * pages of a size. Without /proc and /sys only RLIMIT_NOFILE and RLIMIT_FSIZE are
 * always named. Names in it, of the holder of a lease for instance, have a "?" for each
 * character that could steer a terminal. It is meaningful only right after a libgmem
 * function returned a negative errno in the same thread.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: a sentence, never NULL, valid until this thread's next libgmem call.
 */
GMEM_API const char *gmem_last_error(void);

/**
 * gmem_version() - version of the library in use, "major.minor.patch"
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: a static string.
 */
GMEM_API const char *gmem_version(void);

/* ------------------------------------------------------- ways of backing -- */

/**
 * enum gmem_backing - the ways guest memory can be backed
 * @GMEM_BACKING_HOST: ordinary host memory in an ordinary memslot. It works on
 *	every kernel, has a dirty log, and uses no guest_memfd.
 * @GMEM_BACKING_MAPPED: a guest_memfd (MMAP|INIT_SHARED) whose *mapping* is
 *	put into an ordinary memslot. It keeps the dirty log and read-only slots.
 * @GMEM_BACKING_SHARED: a guest_memfd (MMAP|INIT_SHARED) bound to the
 *	memslot. Host and guest use the same pages. Where guests use the file
 *	(GMEM_CAP_GUEST_USES_FILE) and KVM has nested paging, their loads and stores
 *	need no host page tables. It has no dirty log and no read-only slots.
 * @GMEM_BACKING_PRIVATE: a private guest_memfd bound to the memslot, separate
 *	shared memory beside it, ranges converted through VM attributes. The
 *	host cannot reach private memory.
 * @GMEM_BACKING_INPLACE: a guest_memfd converted in place. No kernel had it when
 *	this version was written (it is queued for Linux 7.4). The library never
 *	imitates it, and refuses it unless struct gmem_vm_opts says how to ask the
 *	kernel and a test shows that it works.
 *
 * The numbers are ABI. 0 means "none".
 */
enum gmem_backing {
	GMEM_BACKING_NONE = 0,
	GMEM_BACKING_HOST = 1,
	GMEM_BACKING_MAPPED = 2,
	GMEM_BACKING_SHARED = 3,
	GMEM_BACKING_PRIVATE = 4,
	GMEM_BACKING_INPLACE = 5,
};

/**
 * gmem_backing_name() - name of a way of backing
 * @backing: an enum gmem_backing
 *
 * The names are "host", "mapped", "shared", "private" and "in-place".
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: a static string, or NULL if @backing names no way of backing.
 */
GMEM_API const char *gmem_backing_name(uint32_t backing);

/**
 * gmem_backing_from_name() - the inverse of gmem_backing_name()
 * @name: one of the five names, or anything else
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: an enum gmem_backing; GMEM_BACKING_NONE if @name is none of the names.
 */
GMEM_API uint32_t gmem_backing_from_name(const char *name);

/*
 * Create flags of a guest_memfd, the kernel's own bits. Bits the kernel offers
 * and this header does not name may be passed wherever create flags are taken.
 */
#define GMEM_CREATE_MMAP	(1ull << 0) /* GUEST_MEMFD_FLAG_MMAP */
#define GMEM_CREATE_INIT_SHARED	(1ull << 1) /* GUEST_MEMFD_FLAG_INIT_SHARED */

/* ------------------------------------------------------- kinds of memory -- */

/**
 * enum gmem_kind - what the memory of a region is
 * @GMEM_KIND_DEFAULT: not said. GMEM_KIND_DEVICE where the kernel says that your own
 *	memory (GMEM_REGION_HVA) is of a device (VM_IO or VM_PFNMAP), else
 *	GMEM_KIND_ROM with GMEM_REGION_READONLY, else GMEM_KIND_RAM.
 * @GMEM_KIND_RAM: memory of the guest, and nobody else has its contents
 * @GMEM_KIND_ROM: memory whose contents the guest gets and cannot bring back, such as
 *	firmware
 * @GMEM_KIND_DEVICE: memory of a device: the BAR of one that is passed through,
 *	registers, a page of /dev/mem. To read or write it can have effects.
 * @GMEM_KIND_EXTERNAL: memory whose contents live elsewhere: persistent memory, the
 *	window of a file system, a file that is kept beside the image
 *
 * All kinds are in the layout and reachable: lookups, views, leases, dirty logs and
 * exits do not tell them apart, but without gmem_recovery_enable() views have the
 * kernel copy, which refuses memory of devices. What works on memory does:
 *
 *	                 RAM       ROM        DEVICE      EXTERNAL
 *	gmem_vm_save     contents  contents   recorded    recorded
 *	gmem_vm_restore  written   compared   checked     checked
 *	gmem_vm_load     written   compared   refused     written
 *	populate         yes       yes        left out *  left out *
 *	discard          yes       left out * left out *  left out *
 *	statistics, dump counted   counted    not counted not counted
 *	export, if its   yes       yes        left out +  yes
 *	file can be given
 *	NUMA policies    yes       yes        left out    left out
 *
 * recorded: the image says that there is memory of this kind, and which
 *	(@identity of struct gmem_region_opts), but not what is in it.
 * checked: the restoring VM must have memory of the same kind and identity at the
 *	same addresses, and no other; GMEM_TRANSFER_LEAVE_REST does without the check.
 * compared: only what differs is written, so memory that cannot be written is
 *	restored where its contents are right; else the call fails.
 * left out: the call goes on with the rest of the range; if there is no rest, it is
 *	refused with -EOPNOTSUPP, and nothing was done.
 * *: with the flag GMEM_POPULATE_ALL_KINDS or GMEM_DISCARD_ALL_KINDS the memory is
 *	treated as RAM. A discard of a file that is mapped shared punches a hole into the
 *	file itself: persistent memory, or a file on disk, has then lost these contents.
 * +: exported if gmem_export_add_memory() was called for it.
 *
 * GMEM_REGION_READONLY counts whatever the kind: memory that is added with it is
 * exported to read, and populated to read where it is mapped for reading only.
 *
 * A range of GMEM_REGION_DEVICE is no memory and has no kind: its kind is
 * GMEM_KIND_DEFAULT, and dumps call its way of backing "device", whereas memory of
 * GMEM_KIND_DEVICE has backing "host" and "device" as its kind.
 *
 * What should be treated as RAM by every call is GMEM_KIND_RAM, whatever is mapped
 * there. The numbers are ABI.
 */
enum gmem_kind {
	GMEM_KIND_DEFAULT = 0,
	GMEM_KIND_RAM = 1,
	GMEM_KIND_ROM = 2,
	GMEM_KIND_DEVICE = 3,
	GMEM_KIND_EXTERNAL = 4,
};

/**
 * gmem_kind_name() - name of a kind of memory
 * @kind: an enum gmem_kind
 *
 * The names are "ram", "rom", "device" and "external".
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: a static string, or NULL if @kind names no kind, as GMEM_KIND_DEFAULT.
 */
GMEM_API const char *gmem_kind_name(uint32_t kind);

/* -------------------------------------------------------------- recovery -- */

/**
 * gmem_recovery_enable() - let the library recover from faults in guest memory
 *
 * From now on the library accesses guest memory with ordinary instructions. Where
 * these raise SIGBUS because a page is not there (private, past the end of the file,
 * poisoned), or SIGSEGV because the memory is mapped without the permission or not at
 * all (your own memory after mprotect(2) or munmap(2), a ROM that is PROT_READ, a block
 * that is PROT_NONE while it is unplugged), the function returns -EFAULT or -EHWPOISON
 * and the process lives on. That includes the buffers that you pass to these
 * functions. Without recovery the library makes the kernel copy, with a system call
 * each time, and the same errors.
 *
 * Your own instructions are not recovered from: a store to what gmem_view_hva() gave,
 * where that is a ROM that is mapped PROT_READ, raises SIGSEGV in your program.
 *
 * This installs a handler for SIGBUS and one for SIGSEGV for the whole process, the
 * only handlers that libgmem ever installs; if one cannot be installed, the other is
 * not either. They pass every signal that is not the library's on to the handler
 * installed before, of either style, with the arguments they got themselves: faults
 * of other code, on whatever stack, signals that were sent, news of pages that went
 * bad elsewhere. If there was none, the process dies of the real fault, and its core
 * dump shows that fault.
 *
 * Calls nest: each needs its gmem_recovery_disable(). Each call installs
 * libgmem's handlers again where another one has replaced them.
 *
 * A handler installed later must pass on every SIGBUS and SIGSEGV that is not its own:
 * until gmem_recovery_disable() the library does not look again who handles them. A
 * sandbox may forbid sigaction(2) then, but a signal that is not the library's calls it,
 * to put the default in place that kills, and to stay where a handler installed that.
 * For a handler installed earlier, five things differ from what it asked for: neither
 * signal is blocked while it runs, even without SA_NODEFER; it runs on the alternate
 * signal stack where the thread has one, even without SA_ONSTACK; the signal
 * mask of the interrupted code is restored only once it has returned; sigaction()
 * names libgmem's handler, not this one; and if it installs SIG_DFL and returns,
 * libgmem's handler stays, and the next signal that is not the library's kills. The
 * handlers of sanitizers and of the runtimes of Go and Rust work with that, on
 * whichever side of libgmem's they are.
 *
 * The kernel kills a thread that faults while it blocks the signal, whatever
 * handler there is. The library uses ordinary instructions only in views, and
 * transfers, that were made while neither signal was blocked, and in gmem_hva_read() and
 * gmem_hva_write() of threads that called one of them so. Keep both unblocked in threads
 * that access guest memory through libgmem.
 *
 * Thread-safe, but not against a sigaction() for these signals in another thread.
 * Source: sigaction(2). Since: 0.1.
 *
 * Return: 0, or -EBUSY too many other handlers were installed above libgmem's,
 * or the kernel's own errno: the handlers are those that were there before.
 */
GMEM_API GMEM_CHECKED int gmem_recovery_enable(void);

/**
 * gmem_recovery_disable() - undo one gmem_recovery_enable()
 *
 * The last call puts the previous handlers back, where libgmem's is still the one
 * installed. If another handler was installed above one, libgmem's stays and
 * passes every signal on; then libgmem must not be unloaded. Call this only when
 * no thread is inside the library. A call without its gmem_recovery_enable()
 * does nothing.
 *
 * Thread-safe. Source: sigaction(2). Since: 0.1.
 */
GMEM_API void gmem_recovery_disable(void);

/**
 * gmem_hva_read() - copy from memory of this process that may not be there
 * @hva: host address to read from, any alignment
 * @buf: receives the bytes
 * @size: bytes; 0 does nothing; must not wrap
 * @ret_done: bytes copied, also on failure; NULL if not wanted
 *
 * For memory without a region, such as a mapping of gmem_file_map() or of a file that
 * may become shorter. For guest memory there are views, which know whether it is still
 * there. As gmem_view_new() does for a view, the first call of a thread after
 * gmem_recovery_enable() that finds SIGBUS and SIGSEGV unblocked decides for the calls of
 * that thread that follow, until recovery is disabled: keep both unblocked in it, since the
 * kernel kills a thread that blocks them at a page that is not there. Until then the kernel
 * copies, with two system calls each time. @hva may be any address; what is mapped there
 * must not change meanwhile to something that you do not want to read.
 *
 * Thread-safe. Source: sigaction(2), sigprocmask(2), process_vm_readv(2). Since: 0.1.
 *
 * Return: 0 if all bytes were copied, or -EFAULT a page of @hva, or of @buf, is not
 * there or mapped without the permission, -EHWPOISON the hardware lost a page (only with
 * gmem_recovery_enable()), -EINVAL NULL argument, or the range wraps, -EPERM or -ENOSYS
 * a sandbox refuses process_vm_readv(2) or futex(2), which do it without
 * gmem_recovery_enable(), or whatever errno it refuses them with.
 */
GMEM_API int gmem_hva_read(const void *hva, void *buf, uint64_t size, uint64_t *ret_done);

/**
 * gmem_hva_write() - copy to memory of this process that may not be there
 * @hva: host address to write to, any alignment
 * @buf: the bytes
 * @size: bytes; 0 does nothing; must not wrap
 * @ret_done: bytes copied, also on failure; NULL if not wanted
 *
 * As gmem_hva_read(). What you write to a wrong address is overwritten there.
 *
 * Thread-safe. Source: sigaction(2), process_vm_readv(2). Since: 0.1.
 *
 * Return: as gmem_hva_read().
 */
GMEM_API int gmem_hva_write(void *hva, const void *buf, uint64_t size, uint64_t *ret_done);

/* ----------------------------------------------------- capability report -- */

/**
 * enum gmem_cap - the lines of a capability report
 *
 * Each line answers yes, no or unknown, with a reason. The comment says which
 * value a line has, if any. A number in brackets is the argument of
 * KVM_CHECK_EXTENSION, whose result is then the value. The identifiers are ABI;
 * lines are only appended.
 */
enum gmem_cap {
	/* Answers of KVM_CHECK_EXTENSION on the VM fd */
	GMEM_CAP_KVM = 0,		/* KVM is there; value: API version, without a VM */
	GMEM_CAP_USER_MEMORY2,		/* KVM_SET_USER_MEMORY_REGION2 (231) */
	GMEM_CAP_MEMORY_FAULT_INFO,	/* memory-fault exits (232) */
	GMEM_CAP_MEMORY_ATTRIBUTES,	/* value: mask of attributes (233) */
	GMEM_CAP_GUEST_MEMFD,		/* KVM_CREATE_GUEST_MEMFD (234) */
	GMEM_CAP_VM_TYPES,		/* value: mask of VM types, x86 (235) */
	GMEM_CAP_PRE_FAULT,		/* KVM_PRE_FAULT_MEMORY (236) */
	GMEM_CAP_CREATE_FLAGS,		/* value: mask of create flags (244) */
	GMEM_CAP_MEMSLOTS,		/* value: memslots per address space (10) */
	GMEM_CAP_ADDRESS_SPACES,	/* value: address spaces (118) */
	GMEM_CAP_READONLY,		/* read-only memslots (81) */

	/* Results of the self-test in the VM */
	GMEM_CAP_CREATE,		/* a guest_memfd was made; value: its create flags */
	GMEM_CAP_BIND,			/* it was bound to a memslot */
	GMEM_CAP_HOST_ACCESS,		/* the host read and wrote it through a mapping */
	GMEM_CAP_PRIVATE_MEMORY,	/* this VM has private memory */
	GMEM_CAP_IN_PLACE,		/* attributes on the guest_memfd; value: create flags */
	GMEM_CAP_DIRTY_LOG,		/* a dirty log, for memslots without guest_memfd; value: GMEM_DIRTY_* */
	GMEM_CAP_ADDRESS_BITS,		/* value: bits of guest physical address */
	GMEM_CAP_GUEST_USES_FILE,	/* a guest's loads and stores reach the bound file */

	/* Properties of the host */
	GMEM_CAP_ARCHITECTURE,		/* reason: its name */
	GMEM_CAP_PAGE_SIZE,		/* value: bytes */
	GMEM_CAP_NUMA_NODES,		/* value: nodes online */
	GMEM_CAP_NUMA_POLICY,		/* mbind() decides where guest_memfd pages go */
	GMEM_CAP_IO_URING,		/* io_uring may be used by this process */

	GMEM_CAP_COUNT			/* lines this header knows; grows */
};

/* Values of GMEM_CAP_DIRTY_LOG when dirty rings are enabled (otherwise it has none) */
#define GMEM_DIRTY_RING			1u /* writes are logged in the vCPUs' dirty rings */
#define GMEM_DIRTY_RING_AND_BITMAP	2u /* vCPUs' writes in their rings, others in bitmaps */

/* Answers of a finding */
#define GMEM_UNKNOWN	0u
#define GMEM_NO		1u
#define GMEM_YES	2u

/**
 * struct gmem_finding - one line of a capability report
 * @name: stable identifier, lower case with dashes, such as "guest-memfd"
 * @title: a few words for people
 * @reason: reason for the answer; never NULL
 * @remedy: advice how to change a "no"; NULL for other answers
 * @value: the number that belongs to the line, see enum gmem_cap; 0 if none
 * @answer: GMEM_YES, GMEM_NO or GMEM_UNKNOWN
 * @has_value: 1 if the line has a @value, else 0
 *
 * The strings belong to the report the finding was taken from.
 */
struct gmem_finding {
	const char *name;
	const char *title;
	const char *reason;
	const char *remedy;
	int64_t     value;
	uint32_t    answer;
	uint32_t    has_value;
};

/* Flags of struct gmem_caps_opts */
#define GMEM_CAPS_KVM_FD	(1ull << 0) /* use @kvm_fd */
#define GMEM_CAPS_VM_TYPE	(1ull << 1) /* use @vm_type */
#define GMEM_CAPS_NO_SELFTEST	(1ull << 2) /* only ask, try nothing */
#define GMEM_CAPS_RUN_GUEST	(1ull << 3) /* run a guest in a scratch VM */

/**
 * struct gmem_caps_opts - how to make a capability report
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_CAPS_*; unknown bits are -EINVAL
 * @vm_type: the type the VM was created with (KVM_CREATE_VM's argument), read
 *	only with GMEM_CAPS_VM_TYPE. KVM has no call that returns it. Answers to a
 *	guest's requests depend on it: see gmem_vcpu_handle_exit().
 * @kvm_fd: an open /dev/kvm, borrowed for the call, or the negative errno of an
 *	attempt to open it; read only with GMEM_CAPS_KVM_FD. Without that flag the
 *	library opens /dev/kvm for the call where it needs it: for a report without
 *	a VM, and with GMEM_CAPS_RUN_GUEST.
 * @reserved: must be 0
 */
struct gmem_caps_opts {
	size_t   size;
	uint64_t flags;
	uint64_t vm_type;
	int32_t  kvm_fd;
	uint32_t reserved;
};

/* For gmem_caps_new(): there is no VM yet */
#define GMEM_NO_VM (-1)

/**
 * gmem_caps_new() - find out what a VM, or this host, supports
 * @vm_fd: VM fd, borrowed for the call; or GMEM_NO_VM
 * @opts: NULL for defaults
 * @ret: the report, yours to free with gmem_caps_free()
 *
 * Only a VM fd can say what its VM supports; /dev/kvm alone says what was
 * compiled in. With GMEM_NO_VM the lines that only a VM can answer are unknown,
 * and a host without KVM gives a report full of "no", not a failure.
 *
 * Unless GMEM_CAPS_NO_SELFTEST is given, a self-test proves the report: it
 * creates a one-page guest_memfd and closes it again, and adds and deletes
 * one-page memslots at the highest free slot number and the highest free
 * address. Use GMEM_CAPS_NO_SELFTEST on a VM whose vCPUs already run: on x86,
 * deleting any memslot makes the guest fault all of its memory in again. Self-tests
 * of a process take turns. A memslot that other code sets at that number or address
 * meanwhile can be refused, with -EINVAL or -EEXIST, or spoil the test. With
 * GMEM_CAPS_RUN_GUEST a few guest instructions run in a scratch VM, which is
 * created from /dev/kvm, to see which bytes a guest really reads. None is run in types
 * that take memory from the host or need more than memory to run: SEV, SNP, TDX, pKVM.
 *
 * Thread-safe. Source: KVM_CHECK_EXTENSION, KVM_CREATE_GUEST_MEMFD,
 * KVM_SET_USER_MEMORY_REGION2, mmap(2), mbind(2), io_uring_setup(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad options or @vm_fd is /dev/kvm itself, -E2BIG
 * options newer than the library, -EBADF @vm_fd is not open, -ENOTTY it is no VM fd,
 * -EIO the VM belongs to another process or is dead, -ENOMEM, or the kernel's own errno
 * if @vm_fd is something else.
 */
GMEM_API GMEM_CHECKED int gmem_caps_new(int vm_fd, const struct gmem_caps_opts *opts,
					struct gmem_caps **ret);

/**
 * gmem_caps_free() - free a report
 * @caps: report, or NULL
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_caps_free(struct gmem_caps *caps);

/**
 * gmem_caps_get() - read one line of a report
 * @caps: report
 * @cap: number of the line, an enum gmem_cap
 * @ret: the line; its strings live as long as @caps
 *
 * Iterate with @cap from 0 until -ENOENT.
 *
 * Thread-safe: a report never changes. Since: 0.1.
 *
 * Return: 0, or -ENOENT this library has no such line, -EINVAL NULL argument.
 */
GMEM_API int gmem_caps_get(const struct gmem_caps *caps, uint32_t cap,
			   struct gmem_finding *ret);

/* ----------------------------------------------------------------- plans -- */

/* Needs that the memory must meet: struct gmem_request.needs */
#define GMEM_NEED_HOST_ACCESS	(1ull << 0) /* host reads and writes every byte, always */
#define GMEM_NEED_CONVERSION	(1ull << 1) /* ranges change between shared and private */
#define GMEM_NEED_DIRTY_LOG	(1ull << 2) /* a log of writes: bitmaps, or dirty rings */
#define GMEM_NEED_NUMA		(1ull << 3) /* mbind() decides where pages go */
#define GMEM_NEED_READONLY	(1ull << 4) /* memslots the guest cannot write */

#define GMEM_REQUEST_BACKINGS 8

/**
 * struct gmem_request - a caller's requirements of guest memory
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @backings: acceptable ways of backing, most wanted first, ended by the first
 *	0. All 0: only GMEM_BACKING_SHARED. A fallback is taken only if named.
 * @needs: GMEM_NEED_*; unknown bits are -EINVAL. GMEM_NEED_NUMA requires a yes in
 *	the report (GMEM_CAP_NUMA_POLICY), because mbind() succeeds even where it
 *	has no effect.
 * @required_flags: create flags the guest_memfd must have beyond those that the
 *	way of backing implies. Only this member grants GMEM_CREATE_MMAP on
 *	GMEM_BACKING_PRIVATE: there that flag makes the guest use the file's bytes
 *	whether a range is shared or private, and the host can read neither.
 * @preferred_flags: create flags to take where the kernel offers them
 *	(never MMAP or INIT_SHARED on GMEM_BACKING_PRIVATE)
 * @forbidden_flags: create flags the guest_memfd must not have
 */
struct gmem_request {
	size_t   size;
	uint32_t backings[GMEM_REQUEST_BACKINGS];
	uint64_t needs;
	uint64_t required_flags;
	uint64_t preferred_flags;
	uint64_t forbidden_flags;
};

/**
 * gmem_plan_new() - turn a request into exact kernel flags for one VM
 * @caps: report of the VM, borrowed for the call
 * @request: NULL for defaults: shared guest_memfd
 * @ret: the plan, yours to free with gmem_plan_free()
 *
 * This is a pure function: it makes no system call, and the same inputs give
 * the same plan. The plan holds for every VM of the same type on this host for
 * which the same KVM capabilities are enabled (KVM_ENABLE_CAP): some of them
 * change the report, as KVM_CAP_DIRTY_LOG_RING does.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -EOPNOTSUPP nothing acceptable is possible (gmem_last_error()
 * names the nearest miss and what it lacks), -EINVAL contradictory or malformed
 * request, or a report made without a VM, -E2BIG request newer than the
 * library, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_plan_new(const struct gmem_caps *caps,
					const struct gmem_request *request,
					struct gmem_plan **ret);

/**
 * gmem_plan_free() - free a plan
 * @plan: plan, or NULL
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_plan_free(struct gmem_plan *plan);

/**
 * gmem_plan_backing() - way of backing that was chosen
 * @plan: plan
 *
 * Thread-safe: a plan never changes. Since: 0.1.
 *
 * Return: an enum gmem_backing.
 */
GMEM_API uint32_t gmem_plan_backing(const struct gmem_plan *plan);

/**
 * gmem_plan_create_flags() - flags for KVM_CREATE_GUEST_MEMFD
 * @plan: plan
 *
 * Thread-safe: a plan never changes. Since: 0.1.
 *
 * Return: the exact flags; 0, too, if the plan has no guest_memfd
 * (GMEM_BACKING_HOST).
 */
GMEM_API uint64_t gmem_plan_create_flags(const struct gmem_plan *plan);

/**
 * gmem_plan_needs_region2() - memslot ioctl that the plan needs
 * @plan: plan
 *
 * Thread-safe: a plan never changes. Since: 0.1.
 *
 * Return: 1 if the memslot must be set with KVM_SET_USER_MEMORY_REGION2 and
 * KVM_MEM_GUEST_MEMFD, 0 if KVM_SET_USER_MEMORY_REGION is enough.
 */
GMEM_API int gmem_plan_needs_region2(const struct gmem_plan *plan);

/* Places for the private/shared attributes of a plan's memory */
#define GMEM_ATTRIBUTES_NONE	0u /* memory is never converted */
#define GMEM_ATTRIBUTES_VM	1u /* KVM_SET_MEMORY_ATTRIBUTES on the VM fd */
#define GMEM_ATTRIBUTES_FILE	2u /* on the guest_memfd: conversion in place */

/**
 * gmem_plan_attributes() - place of the private/shared attributes
 * @plan: plan
 *
 * Thread-safe: a plan never changes. Since: 0.1.
 *
 * Return: GMEM_ATTRIBUTES_NONE, GMEM_ATTRIBUTES_VM or GMEM_ATTRIBUTES_FILE.
 */
GMEM_API uint32_t gmem_plan_attributes(const struct gmem_plan *plan);

/**
 * gmem_plan_passed_over() - reason why a way of backing was not chosen
 * @plan: plan
 * @backing: an enum gmem_backing
 *
 * Thread-safe: a plan never changes. Since: 0.1.
 *
 * Return: a reason, living as long as @plan, for each way that was not chosen,
 * whether it was asked for or not; NULL if @backing is the chosen way or names
 * no way of backing.
 */
GMEM_API const char *gmem_plan_passed_over(const struct gmem_plan *plan, uint32_t backing);

/* ----------------------------------------------------- guest_memfd files -- */

/**
 * gmem_file_new() - create a guest_memfd according to a plan
 * @vm_fd: VM fd, borrowed for the call; the file belongs to that VM for ever
 * @size: bytes, non-zero, a multiple of the page, below 2^63
 * @plan: plan made from a report of this VM, borrowed for the call
 * @ret: the file, yours to free with gmem_file_free()
 *
 * The kernel allocates and charges no memory until pages are touched. The file
 * keeps the VM alive: KVM frees nothing of a VM while one of its guest_memfds, or
 * a mapping of one, is open anywhere. You may close @vm_fd: to know the VM again,
 * even if another one gets the number, the library has a duplicate of the fd, one
 * for all files and the handle of a VM, until the last of them is freed.
 *
 * The kernel creates the fd without close-on-exec. The library sets the flag at
 * once, but a fork() and exec() by another thread in between leaks the fd, and
 * with it the VM, to the new program. The only remedy is to let no other thread
 * fork meanwhile.
 *
 * Thread-safe. Source: KVM_CREATE_GUEST_MEMFD. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad size or a plan without guest_memfd, -EMFILE,
 * -ENFILE, -ENOMEM, -EBADF @vm_fd is closed, -EIO the VM belongs to another
 * process or is dead, or the kernel's own errno.
 */
GMEM_API GMEM_CHECKED int gmem_file_new(int vm_fd, uint64_t size,
					const struct gmem_plan *plan,
					struct gmem_file **ret);

/**
 * gmem_file_new_raw() - create a guest_memfd with the caller's create flags
 * @vm_fd: as gmem_file_new()
 * @size: as gmem_file_new()
 * @flags: GMEM_CREATE_* or any bit of GMEM_CAP_CREATE_FLAGS
 * @ret: the file, yours to free with gmem_file_free()
 *
 * The meaning of the flags depends on the VM, which this call does not check; a
 * plan does.
 *
 * Thread-safe. Source: KVM_CREATE_GUEST_MEMFD. Since: 0.1.
 *
 * Return: as gmem_file_new(); -EINVAL also for flags the VM does not offer.
 */
GMEM_API GMEM_CHECKED int gmem_file_new_raw(int vm_fd, uint64_t size, uint64_t flags,
					    struct gmem_file **ret);

/**
 * gmem_fd_is_guest_memfd() - tell whether a file descriptor is a guest_memfd
 * @fd: any fd, such as one that another process sent
 *
 * From Linux 6.19 on the kernel's file system says so. Before, guest_memfds are
 * anonymous inodes, which only the link in /proc/self/fd tells apart: where /proc is out
 * of reach, the answer for an anonymous inode is an errno, and never a guess. A sandbox
 * has to allow readlink(2), or readlinkat(2), for that: phase import of gmem-sandbox(7)
 * does not, since an import, which can do without /proc, never asks.
 *
 * Thread-safe. Source: fstatfs(2), the link in /proc/self/fd. Since: 0.1.
 *
 * Return: 1 it is a guest_memfd, 0 it is something else; or -EBADF @fd is not open, or
 * the errno with which the kernel did not tell.
 */
GMEM_API int gmem_fd_is_guest_memfd(int fd);

/* Flags of struct gmem_adopt_opts */
#define GMEM_ADOPT_CREATE_FLAGS	(1ull << 0) /* @create_flags is known */
#define GMEM_ADOPT_OF_VM	(1ull << 1) /* the file is of @vm_fd: do not ask KVM */

/**
 * struct gmem_adopt_opts - properties of an fd created elsewhere
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_ADOPT_*; unknown bits are -EINVAL. GMEM_ADOPT_OF_VM needs a VM.
 * @create_flags: the create flags of the file, read only with
 *	GMEM_ADOPT_CREATE_FLAGS. Without that flag the library finds them by
 *	trying, which allocates the first page of a mappable file.
 */
struct gmem_adopt_opts {
	size_t   size;
	uint64_t flags;
	uint64_t create_flags;
};

/**
 * gmem_file_adopt() - take a guest_memfd created elsewhere
 * @vm_fd: VM fd the file must belong to, borrowed for the call; or GMEM_NO_VM
 *	in a process that has no VM and only maps the file
 * @gmemfd: the guest_memfd, duplicated; your fd stays yours, and keeps the VM
 *	alive until you close it
 * @opts: NULL for defaults
 * @ret: the file, yours to free with gmem_file_free()
 *
 * Checks that @gmemfd is a guest_memfd and reads its size. With a VM the call
 * also checks that the file belongs to this VM, by binding one page to a spare
 * memslot and deleting that memslot again, as in the self-test of gmem_caps_new();
 * no other call tells whose a guest_memfd is. With GMEM_NO_VM this check happens
 * when the file is first used for a region. So adopt files before the guest runs,
 * or it has to fault in all of its memory again. Up to Linux 7.1 the check cannot succeed
 * while memslots have the first and the last page of the file.
 *
 * No memslot is taken, and the guest not disturbed, if the fd is a duplicate of one of a
 * file of this VM that the library has (gmem_file_new(), or adopted before), which the
 * kernel tells with Linux 6.10 or kcmp(2): then the create flags are known, too. Nor is
 * one with GMEM_ADOPT_OF_VM: what you say is believed for this handle alone, and if it is
 * wrong KVM refuses the first region.
 *
 * What the library knows of a file that it has, because it made the file or asked the
 * kernel, wins over what you say with GMEM_ADOPT_OF_VM (-EXDEV) and
 * GMEM_ADOPT_CREATE_FLAGS (-EINVAL). Of flags that it found, it is sure of
 * GMEM_CREATE_MMAP.
 *
 * Later, when a region uses the file, the library compares VM fds, in the same way, and
 * if the kernel does not tell it checks with a memslot.
 *
 * Thread-safe. Source: fstatfs(2) and the link in /proc/self/fd to recognise
 * the file, KVM_SET_USER_MEMORY_REGION2 to recognise its VM. Since: 0.1.
 *
 * Return: 0, or -EBADF a bad fd, -EINVAL @gmemfd is no guest_memfd, @vm_fd is
 * /dev/kvm itself, bad options, or other create flags than the file has, -EXDEV the file
 * belongs to another VM (up to Linux 7.1 also: its first and last page are bound
 * already; on arm64 also: it was created without
 * GMEM_CREATE_MMAP and cannot be bound), -EBUSY no spare memslot or address to
 * check with, -ENOTTY @vm_fd is no VM fd, -EIO the VM belongs to another process or is
 * dead, -E2BIG options newer than the library, -EMFILE, -ENFILE, -ENOMEM, or the
 * kernel's own errno: @vm_fd is something else, or /proc/self/fd cannot be read.
 */
GMEM_API GMEM_CHECKED int gmem_file_adopt(int vm_fd, int gmemfd,
					  const struct gmem_adopt_opts *opts,
					  struct gmem_file **ret);

/**
 * gmem_file_free() - free a file
 * @file: file, or NULL
 *
 * Unmaps what gmem_file_map() mapped of it, except where another mapping replaced it
 * (GMEM_MAP_REPLACE), or a region is over it (GMEM_REGION_RESERVED). Closes the fd now,
 * or with the last region that uses the file: a memslot does not keep its file alive,
 * so the library does.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_file_free(struct gmem_file *file);

/**
 * gmem_file_fd() - fd of a guest_memfd
 * @file: file
 *
 * The fd is borrowed: do not close it. Use it for SCM_RIGHTS, fstat(2) and
 * memslots of your own. A duplicate keeps the VM alive until it is closed.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: the fd, or -EINVAL for NULL.
 */
GMEM_API int gmem_file_fd(const struct gmem_file *file);

/**
 * gmem_file_size() - size of a file
 * @file: file
 *
 * The size never changes.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: bytes; 0 for NULL.
 */
GMEM_API uint64_t gmem_file_size(const struct gmem_file *file);

/**
 * gmem_file_create_flags() - flags a file was created with
 * @file: file
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: GMEM_CREATE_* and any bits this header does not name; 0 for NULL.
 */
GMEM_API uint64_t gmem_file_create_flags(const struct gmem_file *file);

/* Flags of struct gmem_map_opts */
#define GMEM_MAP_READONLY	(1ull << 0) /* loads only */
#define GMEM_MAP_FIXED		(1ull << 1) /* at @hva, if nothing is there */
#define GMEM_MAP_REPLACE	(1ull << 2) /* at @hva, over what is there */

/**
 * struct gmem_map_opts - how to map a file
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_MAP_*; unknown bits are -EINVAL
 * @hva: page-aligned address, read only with GMEM_MAP_FIXED or GMEM_MAP_REPLACE
 * @align: alignment of the address, a power of two not below the page; 0: the
 *	page. Excludes @hva.
 */
struct gmem_map_opts {
	size_t   size;
	uint64_t flags;
	void    *hva;
	uint64_t align;
};

/**
 * gmem_file_map() - map part of a file into this process
 * @file: file created with GMEM_CREATE_MMAP
 * @offset: start in the file, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; must end inside the file
 * @opts: NULL for defaults: readable and writable, at any address
 * @ret_hva: the address
 *
 * The mapping is always MAP_SHARED: a guest_memfd has no copy-on-write. A range
 * may be mapped several times. Mappings end with gmem_file_unmap() or
 * gmem_file_free(); until then they keep the file and the VM alive.
 *
 * A load from or store to a private page raises SIGBUS. In files without
 * GMEM_CREATE_INIT_SHARED every page is private. A system call on such an address
 * fails with -EFAULT instead.
 *
 * GMEM_MAP_REPLACE is for address space you reserved, and for mappings of
 * gmem_file_map(), of this or of any other file: what is replaced is theirs no
 * more. The memory of a region or an import is never replaced, but your own is
 * (GMEM_REGION_HVA with GMEM_BACKING_HOST or GMEM_BACKING_PRIVATE). If the kernel
 * runs out of memory, the previous mapping there can be lost.
 *
 * Thread-safe. Source: mmap(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, alignment or options, -ENODEV the file was
 * created without GMEM_CREATE_MMAP, -EEXIST something is mapped at @hva, -EBUSY a
 * region or an import has memory there, -E2BIG options newer than the library, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_file_map(struct gmem_file *file, uint64_t offset,
					uint64_t size, const struct gmem_map_opts *opts,
					void **ret_hva);

/**
 * gmem_file_unmap() - unmap a mapping of gmem_file_map(), or part of it
 * @file: file
 * @hva: page-aligned address
 * @size: bytes, non-zero, a multiple of the page
 *
 * The whole range must lie in one mapping made by gmem_file_map().
 *
 * Thread-safe. Source: munmap(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, -ENOENT the range is not, or no longer, mapped
 * from this file, -EBUSY it is a region's own mapping, -ENOMEM.
 */
GMEM_API int gmem_file_unmap(struct gmem_file *file, void *hva, uint64_t size);

/**
 * gmem_file_find_hva() - file offset behind a host address
 * @file: file
 * @hva: any address
 * @ret_offset: offset in the file
 *
 * Finds addresses in mappings of gmem_file_map() and of regions.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -ENOENT @hva is in no mapping of this file, -EINVAL NULL argument.
 */
GMEM_API int gmem_file_find_hva(struct gmem_file *file, const void *hva,
				uint64_t *ret_offset);

/**
 * gmem_file_allocate() - allocate pages before they are touched
 * @file: file; need not be mappable
 * @offset: start in the file, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; must end inside the file
 * @ret_done: bytes finished counted from @offset, also on failure; or NULL
 *
 * Allocates in pieces, so that signals are handled meanwhile and do not stop the
 * call. Allocated pages stay allocated on failure; a piece that failed may be
 * partly allocated beyond @ret_done. Beware: in a memory cgroup at its limit the
 * kernel sends SIGKILL and does not return -ENOMEM.
 *
 * Thread-safe. Source: fallocate(2) with FALLOC_FL_KEEP_SIZE. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, -ENOMEM, -EINTR signals kept arriving faster
 * than single pages could be allocated, -EHWPOISON, or the kernel's own errno.
 */
GMEM_API int gmem_file_allocate(struct gmem_file *file, uint64_t offset, uint64_t size,
				uint64_t *ret_done);

/**
 * gmem_file_punch() - free pages
 * @file: file
 * @offset: start in the file, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; must end inside the file
 * @ret_done: bytes finished counted from @offset, also on failure; or NULL
 *
 * The pages are gone for host and guest alike, and both read zeros there
 * afterwards. No I/O may be under way or registered on the range: a pinned page
 * survives, detached from the file, and the I/O goes to that page unseen.
 * Pages freed before a failure stay freed. While it works, no lease is given on the
 * range (gmem_lease_new()).
 *
 * The call does not see a lease whose region has a mapping of this file as your
 * own memory (GMEM_REGION_HVA with GMEM_BACKING_HOST or GMEM_BACKING_PRIVATE):
 * such a region does not know the file. gmem_vm_discard() through a region of
 * the file sees that lease.
 *
 * Thread-safe. Source: fallocate(2) with FALLOC_FL_PUNCH_HOLE. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, -EBUSY somebody holds a lease on part of it, at
 * whatever guest address, and nothing was freed, -EINTR as gmem_file_allocate(), or
 * the kernel's own errno.
 */
GMEM_API int gmem_file_punch(struct gmem_file *file, uint64_t offset, uint64_t size,
			     uint64_t *ret_done);

/* ------------------------------------------------------------------- VMs -- */

/**
 * gmem_log_fn - receives the messages of a VM handle
 * @data: log_data of struct gmem_vm_opts
 * @error: negative errno of the call that failed, or 0 for a note
 * @message: one sentence, without newline; valid during the call
 *
 * The library calls it in the thread of the libgmem call, possibly with the
 * handle locked: the callback must not call libgmem with that VM, its regions or
 * their files.
 */
typedef void (*gmem_log_fn)(void *data, int error, const char *message);

/**
 * struct gmem_inplace_opts - kernel interface of conversion in place
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @request: number of the ioctl on a guest_memfd that sets attributes of a range
 *	of it. Its struct is that of the proposal, 128 bytes: offset, size,
 *	attributes, flags, error_offset, and zeros.
 * @create_flags: create flags of such a guest_memfd
 *
 * No kernel had this interface when this version was written (it is queued for
 * Linux 7.4). The numbers changed between the many postings of the proposal, so
 * libgmem has none of them: take them from the headers of the running kernel.
 * gmem_vm_new() makes a page private and shared again, and tests whether the host
 * reaches it: GMEM_CAP_IN_PLACE of gmem_vm_caps() then says yes, or no and why.
 */
struct gmem_inplace_opts {
	size_t   size;
	uint64_t request;
	uint64_t create_flags;
};

/*
 * Waiting. A call that works on guest memory waits for
 *
 *   earlier work: calls that work on part of the same range and came before, each
 *	in its turn. A change of the layout goes in front of those that wait: it waits
 *	for the work that is under way there, and for other changes of the layout.
 *   leases: a conversion to private and a discard. Others are refused at once. A
 *	transfer has leases, too.
 *   peers: a conversion to private, and a change that takes memory away. All peers of
 *	an export are asked at once for all that the call takes from them, and none has
 *	more than its own wait_ms (struct gmem_peer_opts) for that. So the call waits
 *	no longer than the longest of these, whatever the number of peers, of parts of
 *	the range, of regions, and of messages. Several exports follow each other, and
 *	so do the pieces of a guest's request (gmem_vcpu_handle_exit()).
 *   views: a conversion to private, and every change of the layout, also one that only
 *	adds memory: views that began before look into the older table.
 *
 * In short:
 *
 *	                                earlier work  leases   peers  views
 *	conversion to private           waits         waits    waits  waits
 *	conversion to shared            waits         -        -      -
 *	discard                         waits         waits    -      -
 *	remove, move, rebind a region   waits         refused  waits  waits
 *	add, split a region             waits         refused  -      waits
 *	populate, set NUMA, dirty log   waits         -        -      -
 *	statistics, dump                waits         -        -      -
 *	make a lease, begin transfer    refused       -        -      -
 *	use a view, find a region       -             -        -      -
 *
 * "Refused" is -EBUSY at once. Adding refuses for a lease only where the same change
 * removes the leased memory.
 *
 * wait_ms of struct gmem_convert_opts, struct gmem_vcpu_opts and
 * struct gmem_discard_opts is one limit for all of this together, for the whole call.
 * It counts the time that the call waits, not that in which it works or is in a
 * callback of the caller's. When the time is up, the call fails with -EBUSY, or with
 * -ETIMEDOUT if it waits for peers, which are not cut off for that. Nothing has
 * changed, and gmem_last_error() says what was waited for and how long. A call that
 * goes in parts, such as a discard, has done the parts before.
 *
 * With a wait_ms of 0 a lease in the way is refused at once, and there is no other
 * limit: earlier work ends in its time, since it has limits itself, but there may be
 * much of it, and views end when the program ends them. wait_ms of struct gmem_vm_opts
 * is the limit then, if it is not 0, and that of all calls whose options have none:
 * changes of the layout, gmem_region_set_dirty_log(), gmem_vm_reserve_slots(),
 * populating, for each thread, gmem_vm_discard_owed(), gmem_vm_adopt_private(), dirty
 * logs, NUMA queries and policies, gmem_listener_new() with region_added, statistics
 * with GMEM_STATS_RESIDENT, and dumps. Each of these fails with -EBUSY then, but a dump
 * leaves out what it could not count in time.
 *
 * The end of a VM or an import waits for views for at most wait_ms of struct
 * gmem_vm_opts, or a second; then they keep the memory, see gmem_vm_free().
 *
 * Two waits have no limit. A change of the layout waits for views when the kernel has
 * made it already: it cannot be undone, and the memory cannot go while a view may
 * have its address. gmem_listener_new(), gmem_listener_free(), gmem_export_new() and
 * gmem_export_free() wait for the work that is under way when they are called, all of it
 * at the same time, but not for work that waits or comes later. gmem_export_free() ends
 * its peers first, so that no work waits for those any more.
 */

/* Flags of struct gmem_vm_opts */
#define GMEM_VM_NO_SELFTEST	(1ull << 0) /* as GMEM_CAPS_NO_SELFTEST */
#define GMEM_VM_TYPE		(1ull << 1) /* use @vm_type */
#define GMEM_VM_ADDRESS_SPACE	(1ull << 2) /* use @address_space */

/**
 * struct gmem_vm_opts - how to attach to a VM
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_VM_*; unknown bits are -EINVAL
 * @caps: report of this VM, or of a VM on this host that has the same type and the
 *	same KVM capabilities enabled; copied. NULL: one is made with
 *	gmem_caps_new(). Enable capabilities (KVM_ENABLE_CAP) before the report is
 *	made.
 * @log: log callback, NULL for none
 * @log_data: passed to @log
 * @inplace: the kernel's numbers for conversion in place; NULL: no such conversion
 * @vm_type: the type the VM was created with, as in struct gmem_caps_opts, read only
 *	with GMEM_VM_TYPE; otherwise what @caps knows of it
 * @wait_ms: milliseconds that a call for this handle, whose own options say nothing,
 *	waits for others in all, see "Waiting" above; 0: no limit
 * @address_space: KVM's address space that the handle is for, read only with
 *	GMEM_VM_ADDRESS_SPACE and below GMEM_CAP_ADDRESS_SPACES; otherwise 0
 *
 * Address spaces. On x86, KVM has a second one for a vCPU in system management mode:
 * 0 is what a vCPU sees outside of that mode, 1 what it sees in it. Each has its own
 * memslots, numbers and addresses, so each has a handle of its own, made with the same
 * VM fd: a handle's regions, views, dirty logs, statistics, dumps and images are those of
 * one address space. What they share is the VM and its files:
 *
 *   Address space 1 needs all that a vCPU sees in that mode, not SMRAM alone. Add
 *	the RAM of address space 0 there with GMEM_BACKING_HOST and GMEM_REGION_HVA, at
 *	the host addresses of the regions of address space 0 (gmem_region_hva()),
 *	whatever their way of backing is; or the same file with GMEM_BACKING_MAPPED.
 *	GMEM_BACKING_SHARED is for memory of its own, such as SMRAM: KVM binds a part of a
 *	guest_memfd to one memslot, in whatever address space, and refuses a second one.
 *	A save takes all regions of its handle: give those that have the memory of space 0
 *	GMEM_KIND_EXTERNAL, so that an image of space 1 holds SMRAM and not the RAM once
 *	more. Statistics do not count it twice then, either.
 *	Nothing refuses to take the memory from under such regions: remove them before
 *	those whose memory they use, and free the handle of space 1 first.
 *   GMEM_BACKING_PRIVATE and GMEM_BACKING_INPLACE are refused there: KVM has one set of
 *	attributes for the addresses of all spaces, and VMs that have private memory
 *	have one address space.
 *   A lease and a claim of one handle do not keep another handle from discarding the
 *	same host memory. Discard, populate, save and restore memory that is in both
 *	through the handle of address space 0.
 *   Exits do not say in which space they came about. gmem_vcpu_new() is for the
 *	handle of address space 0.
 *
 * gmem_vm_free() deletes the memslots of the handle's own address space.
 */
struct gmem_vm_opts {
	size_t   size;
	uint64_t flags;
	const struct gmem_caps *caps;
	gmem_log_fn log;
	void    *log_data;
	const struct gmem_inplace_opts *inplace;
	uint64_t vm_type;
	uint32_t wait_ms;
	uint32_t address_space;
};

/**
 * gmem_vm_new() - manage the guest memory of a VM
 * @vm_fd: VM fd, duplicated: yours stays yours
 * @opts: NULL for defaults
 * @ret: the handle, yours to free with gmem_vm_free()
 *
 * The handle keeps its duplicate of the VM fd, close-on-exec, and with it the VM
 * until it is freed: you may close @vm_fd at any time, and it does not matter what
 * gets the number next.
 *
 * The library hands out memslot numbers from 0 upwards. Reserve the numbers of memslots
 * that you set yourself with gmem_vm_reserve_slots(), and have one handle for an
 * address space of a VM: KVM does not say which numbers are in use. Where it refuses a
 * memslot because of one that this handle did not set, the sentence says so. But it
 * takes a number that is in use with the same host address and the same size as a move
 * of that memslot, and does not refuse it. Without a report in @opts the library probes
 * the VM, with a self-test: see gmem_caps_new().
 *
 * Thread-safe. Source: as gmem_caps_new(). Since: 0.1.
 *
 * Return: 0, or the errors of gmem_caps_new(), -EINVAL also for an address space that
 * the VM has not, -EMFILE, -ENFILE.
 */
GMEM_API GMEM_CHECKED int gmem_vm_new(int vm_fd, const struct gmem_vm_opts *opts,
				      struct gmem_vm **ret);

/**
 * gmem_vm_free() - remove every region and free the handle
 * @vm: handle, or NULL
 *
 * Deletes the memslots, then unmaps their memory and closes the files that you do
 * not own; all regions of the handle and their host addresses become invalid.
 * Afterwards only your own files keep the VM alive, until gmem_file_free().
 * vCPUs must not run any more. It does not matter whether the VM fd is still open.
 *
 * Views of other threads need not be freed before: what they look up from now on is
 * -ESTALE. The call waits for those between gmem_view_begin() and gmem_view_end(), for
 * wait_ms of struct gmem_vm_opts, or a second if that is 0. The calling thread's
 * gmem_vm_thread_view() is freed. A child of fork(2) waits for its own threads alone.
 *
 * A view that is between the two for longer keeps the memory until it is freed: the call
 * tells the log so (-EBUSY), and returns. The guest has lost the memory then, as always,
 * but what the view looks up and accesses is still there until its gmem_view_end(), and
 * the next VM gets other addresses. Until then all of the handle's mappings stay, and
 * the files that you do not own; if one of these is a guest_memfd, it keeps the VM.
 * The thread that frees the last such view unmaps and closes them, in gmem_view_free()
 * or at its end. Leave memory of your own (GMEM_REGION_HVA) mapped for as long.
 *
 * So does a gmem_populate_run() or a gmem_transfer_step() that another thread is in, until
 * it returns; it is not waited for. gmem_peer_wait() and gmem_export_dispatch() may be
 * under way, too. All other calls with the handle, its changes and its vCPUs' records have
 * returned before.
 *
 * Deleting a memslot takes KVM longer than all else here: if the VM ends, too,
 * gmem_vm_free_with_vm() does without.
 *
 * One thread at a time per object; different objects in parallel. Source: as
 * gmem_region_remove(). Since: 0.1.
 */
GMEM_API void gmem_vm_free(struct gmem_vm *vm);

/**
 * gmem_vm_free_with_vm() - free the handle of a VM that ends
 * @vm: handle, or NULL
 *
 * As gmem_vm_free(), but the memslots stay: KVM takes down all of them at once
 * when the VM ends. Close the fds of the VM, its vCPUs and its devices first,
 * so that the handle's fd is the last. A VM that has no guest_memfd is then
 * gone before its memory is. A guest_memfd keeps the kernel's record of the VM,
 * memslots included, until the last file and the last mapping of one are gone:
 * this call closes those of regions, and gmem_file_free() closes yours. The
 * record is harmless meanwhile, although its memslots point at addresses that
 * are not mapped any more: without an fd of the VM, a vCPU or a device, nothing
 * runs a vCPU or has KVM access guest memory.
 *
 * If such an fd is still open, the kernel may give those addresses to the next
 * mmap(2): until the fds are closed, nothing may run or enter a vCPU, add or
 * change memslots, or have the kernel access guest memory, as interrupts of an
 * irqfd can on arm64. Use gmem_vm_free() if the VM lives on: a new handle would
 * know nothing of the memslots that are left.
 *
 * One thread at a time per object; different objects in parallel. Source: close(2)
 * on a VM fd. Since: 0.1.
 */
GMEM_API void gmem_vm_free_with_vm(struct gmem_vm *vm);

/**
 * gmem_vm_caps() - capability report that the handle uses
 * @vm: handle
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: the report, living as long as @vm; NULL for NULL.
 */
GMEM_API const struct gmem_caps *gmem_vm_caps(const struct gmem_vm *vm);

/**
 * gmem_vm_reserve_slots() - keep the library from using memslot numbers
 * @vm: handle
 * @first: first slot number
 * @count: number of slots, non-zero
 *
 * The library uses reserved numbers only for regions that ask for them by number
 * (GMEM_REGION_SLOT). A number may be reserved twice.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -EINVAL past the last slot (GMEM_CAP_MEMSLOTS) or @count 0,
 * -EEXIST a region uses one of them, -EDEADLK a callback of the library calls it.
 */
GMEM_API int gmem_vm_reserve_slots(struct gmem_vm *vm, uint32_t first, uint32_t count);

/* --------------------------------------------------------------- regions -- */

/* Flags of struct gmem_region_opts */
#define GMEM_REGION_READONLY	(1ull << 0) /* the guest cannot write */
#define GMEM_REGION_DIRTY_LOG	(1ull << 1) /* log writes of the guest */
#define GMEM_REGION_SLOT	(1ull << 2) /* use @slot */
#define GMEM_REGION_HVA		(1ull << 3) /* use @hva */
#define GMEM_REGION_DEVICE	(1ull << 4) /* no memory: taken by a device */
#define GMEM_REGION_CONGRUENT	(1ull << 5) /* hva and gpa alike in @align */
#define GMEM_REGION_KEEP_STATE	(1ull << 6) /* memory that the same change removes keeps its state */
#define GMEM_REGION_RESERVED	(1ull << 7) /* at @hva, over address space that is kept free for it */
#define GMEM_REGION_MEMORY_FD	(1ull << 8) /* the host memory is part of the file @memory_fd */

/* Flags of struct gmem_memory_opts */
#define GMEM_MEMORY_MEMFD	(1ull << 0) /* a sealed memfd, which other processes can have */
#define GMEM_MEMORY_HUGETLB	(1ull << 1) /* huge pages of the pool, of @page_size */
#define GMEM_MEMORY_THP		(1ull << 2) /* transparent huge pages wanted */
#define GMEM_MEMORY_NO_THP	(1ull << 3) /* no transparent huge pages */
#define GMEM_MEMORY_DUMP	(1ull << 4) /* in core dumps of this process */
#define GMEM_MEMORY_DONTFORK	(1ull << 5) /* not in children of this process */
#define GMEM_MEMORY_MERGEABLE	(1ull << 6) /* KSM may merge equal pages */

/**
 * struct gmem_memory_opts - host memory that the library makes for a region
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_MEMORY_*; unknown bits are -EINVAL
 * @page_size: size of the huge pages, bytes, a power of two; 0: the kernel's default
 *	size. The region's size must be a multiple of it. Must be 0 without
 *	GMEM_MEMORY_HUGETLB.
 *
 * For memory with GMEM_BACKING_HOST, and the shared side of GMEM_BACKING_PRIVATE, that
 * the library makes. Without these options it is private and anonymous, of ordinary
 * pages.
 *
 * GMEM_MEMORY_MEMFD makes it a memfd of just the region's size, sealed with
 * F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL: gmem_export_new() gives it to other
 * processes as it does a guest_memfd. A discard frees pages for all that have the file.
 *
 * GMEM_MEMORY_HUGETLB takes huge pages of the host's pool when the memory is mapped: if
 * they do not suffice, that is refused, and no later access is. It has no transparent
 * huge pages and cannot be merged. Such a region can be split only between huge pages.
 *
 * GMEM_MEMORY_THP and GMEM_MEMORY_NO_THP are advice, which the kernel takes where
 * /sys/kernel/mm/transparent_hugepage allows it: "enabled" for anonymous memory,
 * "shmem_enabled", which most distributions have at "never", for a memfd. With THP the
 * host address is congruent with the guest address modulo the size of such a page, so
 * that KVM can map both as one, unless @align or @hva of struct gmem_region_opts say
 * something else.
 *
 * Core dumps of this process do not have guest memory that the library maps
 * (MADV_DONTDUMP): that of regions, a guest_memfd's too, and of imports.
 * GMEM_MEMORY_DUMP leaves host memory in, as far as /proc/PID/coredump_filter says: by
 * default anonymous memory, memfds and private huge pages. For other memory, madvise(2)
 * with MADV_DODUMP changes it. A mapping of gmem_file_map(), or of your own of a
 * guest_memfd, is as the kernel has it: dumped only if bit 3 of the filter is set,
 * which it is not by default.
 *
 * A child of fork(2) has the memory, unless GMEM_MEMORY_DONTFORK. A memfd or
 * guest_memfd is the same memory in both. Anonymous memory is copied, page by page,
 * when one of them writes: from the fork on, each page that the guest writes costs a
 * copy, and takes memory twice as long as the child lives. docs/performance.md has the
 * numbers. KVM uses the parent's memory alone.
 *
 * GMEM_MEMORY_MERGEABLE lets KSM merge equal pages (MADV_MERGEABLE), of anonymous memory
 * alone. A guest can find out by timing what pages of others hold: do not merge memory of
 * guests that do not trust each other.
 *
 * An option that this kernel does not have is -EOPNOTSUPP, and the sentence names it:
 * no transparent huge pages, no KSM, or no huge pages of that size. Options that
 * exclude each other, and a size of huge pages that is no power of two or an ordinary
 * page's, are -EINVAL. Too few huge pages are -ENOMEM.
 */
struct gmem_memory_opts {
	size_t   size;
	uint64_t flags;
	uint64_t page_size;
};

/**
 * struct gmem_region_opts - how to add a region
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_REGION_*; unknown bits are -EINVAL
 * @plan: plan for this VM, borrowed for the call. NULL: the plan of a default
 *	request, shared guest_memfd.
 * @file: file to use, created with the plan's create flags; the region keeps it
 *	alive. NULL: a new file of just the region's size.
 * @file_offset: start in @file, a multiple of the page; 0 without @file
 * @hva: page-aligned host address, read only with GMEM_REGION_HVA or
 *	GMEM_REGION_RESERVED, which exclude each other, see below. With GMEM_REGION_HVA
 *	and GMEM_BACKING_HOST or GMEM_BACKING_PRIVATE, your own (shared) memory,
 *	borrowed until the region is removed. Neither the library nor KVM refuses an
 *	address where nothing is mapped, or not with the permission: accesses of the
 *	library's fail there (-EFAULT), and a vCPU's end its run. With GMEM_REGION_HVA
 *	and other backings, the address to map the file at, where nothing may be mapped
 *	yet.
 * @align: alignment of the host address, as in struct gmem_map_opts. With
 *	GMEM_REGION_CONGRUENT the distance between host address and @gpa is a
 *	multiple of @align, as large pages need it, and not the address itself;
 *	@align must not be 0 then. Must be 0 with @hva.
 * @slot: memslot number in the handle's address space, read only with GMEM_REGION_SLOT
 * @kind: what the memory is, an enum gmem_kind
 * @memory: how to make the host memory, copied. NULL: private and anonymous memory.
 *	Must be NULL where the library maps none: with your own memory, or for a
 *	guest_memfd without a shared side beside it. For memory that it maps from your
 *	@memory_fd, THP, NO_THP, DUMP and DONTFORK of GMEM_MEMORY_* are taken, and MEMFD,
 *	HUGETLB and MERGEABLE are -EINVAL: the file is what it is.
 * @memory_fd: file that the host memory is part of, duplicated when the region is added;
 *	must be 0 without GMEM_REGION_MEMORY_FD
 * @reserved: must be 0
 * @memory_offset: start of the region in that file, a multiple of the page; must be 0
 *	without GMEM_REGION_MEMORY_FD
 * @identity: of what the memory holds, as you choose it: images record it for kinds whose
 *	contents they do not have. An image with 0 is restored whatever the VM has here;
 *	any other number must be the VM's, so a VM with 0 takes only images with 0.
 * @data: a pointer of yours for gmem_region_data()
 *
 * GMEM_REGION_MEMORY_FD says of which file the host memory of GMEM_BACKING_HOST, or the
 * shared side of GMEM_BACKING_PRIVATE, is a part: a memfd, or a file on hugetlbfs,
 * tmpfs or another file system. With GMEM_REGION_HVA your own memory at @hva must be a
 * shared mapping of just this part, which is checked by device, inode and offset;
 * without, the library maps it, for which the fd must be open for writing unless
 * GMEM_REGION_READONLY. The region can then be given to other processes, if the file is
 * on tmpfs or hugetlbfs, as a memfd is (gmem_export_new()), holes of the file are known
 * to be zero, and several regions of one file are known to be one memory. A guest_memfd
 * is not for @memory_fd, but a @file with GMEM_BACKING_MAPPED.
 *
 * GMEM_REGION_RESERVED puts the region at @hva over address space that you keep for it:
 * a reservation (mmap(2) of private anonymous memory with PROT_NONE), or a shared
 * mapping of the same part of the same file, of gmem_file_map() or your own. All of the
 * range must be of one kind, with one protection; anything else there is -EEXIST, and
 * nothing at all -EINVAL. The library replaces it in one step, and when the region ends
 * it puts back what was there, a mapping with the protection that it had; advice that
 * you gave the kernel on it is lost. So regions of one file can lie side by side in the
 * host, and are one entry of a table for vhost-user (gmem_export_vhost_user()). It is
 * for all ways of backing: with host memory, the library makes that memory, or maps
 * @memory_fd, at @hva.
 *
 * Nothing is put back if gmem_file_free() has ended the mapping meanwhile. If the
 * kernel refuses to put it back, as it can at vm.max_map_count, anonymous memory is
 * freed, the region's mapping stays, and the refusal goes to the VM's log. A change
 * cannot put a region over one that it removes (GMEM_REGION_KEEP_STATE) and whose
 * memory the library mapped: at that moment that is still there, -EEXIST. What is there
 * is read from /proc/self/maps: where that is out of reach, the flag is -EOPNOTSUPP,
 * and for want of a file descriptor -EMFILE or -ENFILE. No other thread may map or
 * unmap anything there meanwhile; the mapping that the region has can be replaced by
 * nobody (GMEM_MAP_REPLACE is -EBUSY).
 *
 * GMEM_REGION_DEVICE reserves the range in the layout for a device. It has no
 * memory and no memslot, so the guest's accesses exit, and lookups return
 * -ENXIO. No other flag and no other option goes with it. Device memory that the
 * guest reaches without exits is added with GMEM_REGION_HVA and GMEM_KIND_DEVICE
 * instead.
 *
 * GMEM_KIND_DEVICE needs GMEM_REGION_HVA and GMEM_BACKING_HOST, and GMEM_KIND_EXTERNAL
 * a way of backing without private memory. Without a @kind the library asks the kernel
 * what is mapped at @hva, once and without touching it: /proc/self/maps, madvise(2) with
 * MADV_COLD for one page of each mapping of a file, and /proc/self/smaps where the answer
 * has several meanings. Where /proc is out of reach, memory that looks locked or hugetlb counts
 * as RAM. The kind belongs to the region, not to the memory: GMEM_REGION_KEEP_STATE
 * does not keep it.
 *
 * Memory at @hva may be of any kind: anonymous, a file mapped shared or private, of
 * hugetlb or tmpfs, registered with userfaultfd, locked. What a page holds that is not
 * there is found out when it matters, and not assumed: see gmem_vm_save() and
 * gmem_vm_discard(). The size of its pages is asked for when the region is added: a
 * huge page of hugetlb is discarded, and a region split, as a whole only. Where /proc
 * is out of reach, pages count as ordinary; if it cannot be read only for now, for want
 * of a file descriptor, the region is refused, -EMFILE, -ENFILE or -ENOMEM. The first
 * such region opens /proc/self/maps, close-on-exec, until the VM's handle is freed: the
 * library asks there, and for more regions it need not be opened again. The memory must
 * not change its mapping during a call that works on it.
 *
 * GMEM_REGION_KEEP_STATE is for gmem_change_add(), to lay out memory anew without
 * converting it anew; with gmem_region_add() it has no effect. It applies to the memory
 * that the same change removes and adds: the same part of the same @file or, where the
 * way of backing has no file, your own memory at the same @hva, or the same part of the
 * same @memory_fd. That memory stays private where it was private, pending where its
 * other side was to be discarded, and dirty where a dirty log said so that nobody had
 * read; without GMEM_REGION_DIRTY_LOG on the new region, too, the dirty bits are lost.
 * The kernel's attributes, which belong to guest addresses, are set and cleared
 * accordingly. All else begins shared, as do all pages without the flag. The shared
 * side of memory with GMEM_BACKING_PRIVATE is new, unless it is your own or of the same
 * @memory_fd. The flag needs @file, your own memory or GMEM_REGION_MEMORY_FD; a file
 * that the library makes for the region is new, too.
 */
struct gmem_region_opts {
	size_t   size;
	uint64_t flags;
	const struct gmem_plan *plan;
	struct gmem_file *file;
	uint64_t file_offset;
	void    *hva;
	uint64_t align;
	uint32_t slot;
	uint32_t kind;
	const struct gmem_memory_opts *memory;
	int32_t  memory_fd;
	uint32_t reserved;
	uint64_t memory_offset;
	uint64_t identity;
	void    *data;
};

/**
 * gmem_region_add() - give the guest memory at an address range
 * @vm: handle
 * @gpa: guest physical address, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page, below 2^31 pages: one memslot. More
 *	takes several regions, cut as gmem_ram_layout() does.
 * @opts: NULL for defaults: shared guest_memfd
 * @ret: the region; ends with gmem_region_remove() or gmem_vm_free()
 *
 * Creates the memory according to the plan, maps it if the host can reach it, and
 * binds it to a memslot. The memslot's host address is the region's own mapping of
 * exactly its file range: KVM itself reads and writes there, even if the guest
 * uses the file.
 *
 * Thread-safe. Source: KVM_SET_USER_MEMORY_REGION2, or
 * KVM_SET_USER_MEMORY_REGION where the plan needs no more. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range or options, past the VM's address bits, past the end
 * of the file, a file without the plan's create flags, a slot number past the limit,
 * GMEM_REGION_CONGRUENT without @align, or options that exclude each other, such as
 * GMEM_REGION_HVA and GMEM_REGION_RESERVED, -EEXIST overlaps a region, a bound range of
 * the file, a used slot number, or a mapping at @hva, -EXDEV the file belongs to
 * another VM (see gmem_file_adopt()), -EBADF @memory_fd is not open for reading, or not
 * for writing, which it need not be with GMEM_REGION_READONLY or GMEM_REGION_HVA,
 * -EPERM it is sealed against writing (the same), -EFBIG a memfd of the size exceeds
 * RLIMIT_FSIZE, -EOPNOTSUPP the way of backing cannot do what the flags ask, the kernel
 * has not what @memory asks, or the default plan is not possible here, -ENOSPC no
 * memslot left, -EDEADLK a callback of the library calls it, -ENOMEM, -EMFILE, -ENFILE,
 * also to ask what is mapped at its host address, -E2BIG options newer than the
 * library, or the kernel's own errno.
 */
GMEM_API GMEM_CHECKED int gmem_region_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
					  const struct gmem_region_opts *opts,
					  struct gmem_region **ret);

/**
 * gmem_region_remove() - take a region's memory away from the guest
 * @region: region, or NULL; invalid after success
 *
 * Deletes the memslot, waits until every view that began before has ended, and
 * unmaps the memory. A file that was created for the region goes with it,
 * contents and all; your own file keeps its contents.
 *
 * Thread-safe, but no thread may use the region or its host address any more,
 * except through views. Do not call it between gmem_view_begin() and
 * gmem_view_end(). Source: as gmem_region_add(), with size 0. Since: 0.1.
 *
 * Return: 0, or -EBUSY somebody holds a lease on the region, or what is waited for
 * has not ended within wait_ms of struct gmem_vm_opts, -ETIMEDOUT a peer
 * did not give it back (gmem_peer_add(), which names more errnos), -EDEADLK a
 * callback of the library calls it, -ENOMEM, or the kernel's own errno if
 * it refused to delete the memslot or to make its addresses shared again, such as
 * -EIO the VM is dead; then the region is as before, and gmem_vm_free()
 * still frees it. -ENOTRECOVERABLE as gmem_region_move(): what the kernel then
 * has shared is shared for the library, too.
 */
GMEM_API int gmem_region_remove(struct gmem_region *region);

/**
 * gmem_region_move() - move a region to another guest address
 * @region: region
 * @gpa: new guest physical address, a multiple of the page
 *
 * Contents, host address, file, slot number and dirty log stay, and so does what
 * is still to be discarded. A memslot without guest_memfd moves in one call;
 * others are deleted and added: a vCPU that runs meanwhile finds no memory at
 * either address.
 *
 * Thread-safe. Source: as gmem_region_add(). Since: 0.1.
 *
 * Return: 0, or -EINVAL or -EEXIST as gmem_region_add(), -EBUSY somebody holds a
 * lease on the region, -EACCES part of it is private, -ETIMEDOUT a peer did not
 * give it back, -EDEADLK a callback of the library calls it, -ENOMEM, or the
 * kernel's own errno: the region is where it was; or -ENOTRECOVERABLE the kernel
 * refused to undo, too: then the region has no memslot and can only be removed.
 * A memslot that the kernel keeps although it should be gone keeps its number,
 * file range and memory until gmem_vm_free().
 */
GMEM_API int gmem_region_move(struct gmem_region *region, uint64_t gpa);

/**
 * gmem_region_rebind() - put another range of a file behind a region
 * @region: region whose way of backing has a file
 * @file: file of the same VM and create flags; may be the region's own
 * @file_offset: start in @file, a multiple of the page
 *
 * Guest address, slot number and size stay; the region gets a new mapping, so
 * its host address changes and the old one becomes invalid. Its dirty log stays, page
 * by page; what was still to be discarded in the old part of the file stays there.
 * The library deletes the memslot and adds it again: a vCPU that runs meanwhile finds
 * no memory there, and a log that starts full reports every page
 * (gmem_region_set_dirty_log()).
 *
 * Thread-safe, but no thread may use the old host address any more. Source: as
 * gmem_region_add(). Since: 0.1.
 *
 * Return: as gmem_region_move(), but -EACCES only with GMEM_BACKING_INPLACE;
 * -EXDEV the file belongs to another VM, -EOPNOTSUPP the region has no file, or
 * its host address is the caller's choice (GMEM_REGION_HVA, GMEM_REGION_RESERVED).
 */
GMEM_API int gmem_region_rebind(struct gmem_region *region, struct gmem_file *file,
				uint64_t file_offset);

/**
 * gmem_region_gpa() - guest physical address of a region
 * @region: region
 *
 * Thread-safe; while gmem_region_move() runs, it is the old or the new address.
 * Since: 0.1.
 *
 * Return: bytes; 0 for NULL.
 */
GMEM_API uint64_t gmem_region_gpa(const struct gmem_region *region);

/**
 * gmem_region_size() - size of a region
 * @region: region
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: bytes; 0 for NULL.
 */
GMEM_API uint64_t gmem_region_size(const struct gmem_region *region);

/**
 * gmem_region_hva() - host address of a region
 * @region: region
 *
 * The host reads and writes the region's memory there; for GMEM_BACKING_PRIVATE
 * that is its shared side. The address is valid until the region is removed or
 * rebound. Do not unmap it. An access can raise SIGBUS: see gmem_file_map(); so
 * it does wherever the kernel cannot provide a page.
 *
 * Thread-safe; while gmem_region_rebind() runs, it is the old or the new address.
 * Since: 0.1.
 *
 * Return: the address of the region's first byte; NULL for NULL.
 */
GMEM_API void *gmem_region_hva(const struct gmem_region *region);

/**
 * gmem_region_slot() - memslot number of a region
 * @region: region
 *
 * Use it for KVM_GET_DIRTY_LOG and similar. Do not change the memslot. It is the number
 * that KVM's ioctls and dirty rings have: the address space in bits 16 to 31, and below
 * it the number in that space, which @slot of struct gmem_region_opts,
 * gmem_vm_reserve_slots(), sentences and dumps have.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: the number; UINT32_MAX for NULL, or the range of a device, which has none.
 */
GMEM_API uint32_t gmem_region_slot(const struct gmem_region *region);

/**
 * gmem_region_backing() - way of backing of a region
 * @region: region
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: an enum gmem_backing; GMEM_BACKING_NONE for NULL.
 */
GMEM_API uint32_t gmem_region_backing(const struct gmem_region *region);

/**
 * gmem_region_kind() - what the memory of a region is
 * @region: region
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: an enum gmem_kind, as found out if none was asked for; GMEM_KIND_DEFAULT for
 * NULL, or the range of a device, which has no memory.
 */
GMEM_API uint32_t gmem_region_kind(const struct gmem_region *region);

/**
 * gmem_region_identity() - what the memory of a region holds
 * @region: region
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: @identity of struct gmem_region_opts; 0 for NULL.
 */
GMEM_API uint64_t gmem_region_identity(const struct gmem_region *region);

/**
 * gmem_region_file() - file behind a region
 * @region: region
 * @ret_offset: start of the region in the file; NULL if not wanted
 *
 * The file is borrowed: it lives as long as the region. Do not free it unless
 * it was yours.
 *
 * Thread-safe, except against gmem_region_rebind() of this region. Since: 0.1.
 *
 * Return: the file, or NULL if the region has none (GMEM_BACKING_HOST).
 */
GMEM_API struct gmem_file *gmem_region_file(const struct gmem_region *region,
					    uint64_t *ret_offset);

/**
 * gmem_region_split() - split a region in two
 * @region: region; keeps the part below @offset
 * @offset: bytes from the start of the region, a multiple of the page inside it; not
 *	inside a huge page of hugetlb
 * @ret_upper: the new region with the rest; ends like one of gmem_region_add()
 *
 * Contents, host addresses, file and dirty log stay, and so do states of pages.
 * KVM cannot split a memslot, so the library deletes it and adds two: a vCPU
 * that runs meanwhile finds no memory there, and a log that starts full reports
 * every page (gmem_region_set_dirty_log()).
 *
 * Thread-safe. Source: as gmem_region_add(). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad offset, -ENOSPC no memslot left, -ENOMEM, and as
 * gmem_region_move() without -EACCES.
 */
GMEM_API GMEM_CHECKED int gmem_region_split(struct gmem_region *region, uint64_t offset,
					    struct gmem_region **ret_upper);

/**
 * gmem_region_set_dirty_log() - begin or end logging the guest's writes
 * @region: region with backing host or mapped
 * @on: 0 or 1
 *
 * The memslot stays. When logging ends, the part of the log that nobody has read
 * is lost.
 *
 * If the VMM enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 with
 * KVM_DIRTY_LOG_INITIALLY_SET, a log starts full: every page counts as written.
 * That is so when logging begins, and for each new memslot that is logged. So a
 * change of the layout that deletes a memslot and adds it again reports every
 * page of it: gmem_region_split(), gmem_region_rebind(), a region added with
 * GMEM_REGION_KEEP_STATE, and a move where KVM cannot move the memslot. So does
 * such a change that was refused and undone.
 *
 * Thread-safe; waits while the layout is changed. Source:
 * KVM_SET_USER_MEMORY_REGION with KVM_MEM_LOG_DIRTY_PAGES. Since: 0.1.
 *
 * Return: 0, or -EOPNOTSUPP this way of backing has no dirty log, -EINVAL @on,
 * or NULL argument, -EDEADLK a callback of the library calls it,
 * -ENOTRECOVERABLE the region has lost its memslot, or the kernel's own errno.
 */
GMEM_API int gmem_region_set_dirty_log(struct gmem_region *region, int on);

/**
 * gmem_region_get_dirty_log() - get and clear the log of the guest's writes
 * @region: region whose dirty log is on
 * @bitmap: a bit for each page of the region, lowest first, in whole 64-bit
 *	words; filled in
 * @words: words in @bitmap, at least what the region needs
 *
 * Reading clears the log: a bit is set if the page was written since the last call. What trackers
 * (gmem_dirty_new()) have read of it is delivered, too. KVM may report a page that was only read,
 * but misses none that was written. Read a page's contents after this call.
 *
 * No write is missed across changes of the layout, refused ones included:
 * before a memslot is deleted its log is read and kept. For that the library
 * moves the memslot to the end of the VM's addresses, so that no vCPU can store
 * any more; if KVM refuses, all of its pages are reported.
 *
 * If the VMM enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 for its VM,
 * KVM_GET_DIRTY_LOG alone clears nothing, and the library clears the bits that
 * it read. If KVM refuses that, the refusal goes to the VM's log, and the bits
 * come again.
 *
 * A VM with dirty rings (KVM_CAP_DIRTY_LOG_RING) has no such log: see GMEM_CAP_DIRTY_LOG. Regions
 * can be logged there, and the VMM reads the rings. With KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP this
 * call returns what is not in the rings. An entry of a ring names a memslot and a page in it, and
 * the library does not translate entries, but for trackers (gmem_vm_add_dirty_ring()). So stop the
 * vCPUs, and read and reset the rings (KVM_RESET_DIRTY_RINGS), before a change of the layout that
 * gives these numbers another meaning: gmem_region_remove(), gmem_region_split(),
 * gmem_region_rebind(), a change that removes and adds the same memory, and a move where KVM cannot
 * move the memslot.
 *
 * Thread-safe; waits while the region is changed. Source: KVM_GET_DIRTY_LOG,
 * KVM_CLEAR_DIRTY_LOG. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, or @bitmap is too small, -EOPNOTSUPP
 * this way of backing has no dirty log, or the VM has it in its rings, -ENOENT
 * the log is off, -EDEADLK a callback calls it for its own range,
 * -ENOTRECOVERABLE the region has lost its memslot, or the kernel's own errno.
 */
GMEM_API int gmem_region_get_dirty_log(struct gmem_region *region, uint64_t *bitmap,
				       size_t words);

/* --------------------------------------------------- regions, found again -- */

/**
 * struct gmem_region_info - what a region is
 * @region: the region
 * @data: its gmem_region_data()
 * @hva: host address of its first byte, as gmem_region_hva(); NULL for a device's range
 * @file: its guest_memfd, borrowed, as gmem_region_file(); NULL: it has none
 * @gpa: guest physical address
 * @size: bytes
 * @gmemfd_offset: start of the region in @file
 * @host_offset: start of the region in @host_fd
 * @page_size: bytes of the pages that the memory at @hva consists of: the huge pages of
 *	hugetlb, otherwise the host page; 0 for a device's range
 * @flags: of GMEM_REGION_READONLY, GMEM_REGION_DIRTY_LOG, GMEM_REGION_DEVICE, and
 *	GMEM_REGION_HVA (the memory at @hva is yours), those that hold now
 * @gmemfd: fd of @file, borrowed; -1: none
 * @host_fd: fd of the file that the memory at @hva is a mapping of, borrowed, where
 *	that is host memory whose file the library knows; -1 otherwise
 * @slot: memslot number, as gmem_region_slot(); UINT32_MAX: a device's range, or the
 *	memslot was lost
 * @backing: an enum gmem_backing
 * @kind: an enum gmem_kind; GMEM_KIND_DEFAULT for a device's range
 * @reserved: 0; place for what later versions have to say
 *
 * The memory that host and guest share is at @hva. With GMEM_BACKING_MAPPED and
 * GMEM_BACKING_SHARED that is a mapping of @gmemfd; with GMEM_BACKING_HOST and
 * GMEM_BACKING_PRIVATE of @host_fd, if there is one, and @gmemfd then is the private
 * side. Fds, @file and @hva are valid as long as the region has them: until it is
 * removed or rebound.
 */
struct gmem_region_info {
	struct gmem_region *region;
	void    *data;
	void    *hva;
	struct gmem_file *file;
	uint64_t gpa;
	uint64_t size;
	uint64_t gmemfd_offset;
	uint64_t host_offset;
	uint64_t page_size;
	uint64_t flags;
	int32_t  gmemfd;
	int32_t  host_fd;
	uint32_t slot;
	uint32_t backing;
	uint32_t kind;
	uint32_t reserved[5];
};

/**
 * gmem_vm_regions() - all regions of a VM, as they are at one moment
 * @vm: handle
 * @ret: filled in GPA order, ranges of devices included; untouched on failure. NULL, with
 *	@max 0: only return the number of regions
 * @max: entries in @ret
 *
 * A change of the layout is in the answer as a whole, or not at all. What regions
 * are may change as soon as this returns: see struct gmem_listener_opts.
 *
 * Thread-safe, never waits for other work. Since: 0.1.
 *
 * Return: number of regions, or -EINVAL NULL argument, -ENOSPC there are more than @max.
 */
GMEM_API int gmem_vm_regions(struct gmem_vm *vm, struct gmem_region_info *ret, size_t max);

/**
 * gmem_vm_find_gpa() - region at a guest address
 * @vm: handle
 * @gpa: guest physical address, any alignment
 * @ret: what the region is, the range of a device included; untouched on failure
 *
 * To access memory use a view: gmem_view_hva() is faster, and the memory stays.
 *
 * Thread-safe, never waits for other work; @ret says what is so at this moment.
 * Since: 0.1.
 *
 * Return: 0, or -ENOENT there is no region at @gpa, -EINVAL NULL argument.
 */
GMEM_API int gmem_vm_find_gpa(struct gmem_vm *vm, uint64_t gpa, struct gmem_region_info *ret);

/**
 * gmem_vm_find_slot() - region with a memslot number
 * @vm: handle
 * @slot: memslot number, such as an entry of a dirty ring has
 * @ret: what the region is; untouched on failure
 *
 * Looks at one region after the other. To translate many numbers at a time, make a
 * table with gmem_vm_regions().
 *
 * Thread-safe, never waits for other work; @ret says what is so at this moment.
 * Since: 0.1.
 *
 * Return: 0, or -ENOENT no region has the number, -EINVAL NULL argument.
 */
GMEM_API int gmem_vm_find_slot(struct gmem_vm *vm, uint32_t slot, struct gmem_region_info *ret);

/**
 * gmem_vm_find_hva() - region behind a host address
 * @vm: handle
 * @hva: any address
 * @ret_region: the region whose host mapping holds @hva
 * @ret_offset: distance from the start of that region; NULL if not wanted
 *
 * Finds memory that libgmem mapped, also where you chose the place
 * (GMEM_REGION_RESERVED). It does not find your own memory (GMEM_REGION_HVA with
 * GMEM_BACKING_HOST or GMEM_BACKING_PRIVATE), which may be behind several regions.
 *
 * A miss costs no more than a hit: the sentence is written when it is asked for.
 *
 * Thread-safe; @ret_region is valid until it is removed. Since: 0.1.
 *
 * Return: 0, or -ENOENT no region has that address, -EINVAL NULL argument.
 */
GMEM_API int gmem_vm_find_hva(struct gmem_vm *vm, const void *hva,
			      struct gmem_region **ret_region, uint64_t *ret_offset);

/**
 * gmem_region_data() - pointer that the user gave a region
 * @region: region
 *
 * The pointer is that of struct gmem_region_opts, or what gmem_region_set_data() set
 * last. It stays when the region is moved or rebound. Both parts of a split region have
 * it: give the upper one its own. The library does nothing else with it; what it points
 * to is yours to free, when the region has been removed.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: the pointer; NULL for NULL.
 */
GMEM_API void *gmem_region_data(const struct gmem_region *region);

/**
 * gmem_region_set_data() - give a region another pointer of the user's
 * @region: region, or NULL
 * @data: for gmem_region_data()
 *
 * Thread-safe; whoever reads the pointer sees what was written before this call.
 * Since: 0.1.
 */
GMEM_API void gmem_region_set_data(struct gmem_region *region, void *data);

/* ------------------------------------------------------------ RAM layout -- */

/* Machines that gmem_ram_layout() knows */
#define GMEM_MACHINE_X86_64	1u /* RAM from 0, a hole for devices below 4 GiB */
#define GMEM_MACHINE_ARM64	2u /* RAM from a base */
#if defined(__aarch64__)
#define GMEM_MACHINE_NATIVE	GMEM_MACHINE_ARM64
#else
#define GMEM_MACHINE_NATIVE	GMEM_MACHINE_X86_64
#endif

/**
 * struct gmem_gpa_range - range of guest addresses
 * @gpa: guest physical address of its start
 * @size: bytes
 */
struct gmem_gpa_range {
	uint64_t gpa;
	uint64_t size;
};

/* Flags of struct gmem_ram_layout_opts */
#define GMEM_RAM_LAYOUT_HYPERTRANSPORT	(1u << 0) /* x86_64: use addresses of HyperTransport */

/**
 * struct gmem_ram_layout_opts - machine, and place of its devices
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @machine: GMEM_MACHINE_*; 0: this one
 * @flags: GMEM_RAM_LAYOUT_*; unknown bits are -EINVAL
 * @hole_start: x86_64 alone: start of the hole for devices, which ends at 4 GiB; 0: 3 GiB
 * @base: arm64 alone: first address of RAM; 0: 1 GiB
 * @holes: more ranges without RAM, each a multiple of the page, in any order; they
 *	may overlap each other and the machine's own, and be where no RAM would come.
 *	Borrowed for the call
 * @hole_count: entries in @holes
 */
struct gmem_ram_layout_opts {
	size_t   size;
	uint32_t machine;
	uint32_t flags;
	uint64_t hole_start;
	uint64_t base;
	const struct gmem_gpa_range *holes;
	uint64_t hole_count;
};

/**
 * struct gmem_ram_range - one range of RAM
 * @gpa: guest physical address of its start
 * @size: bytes
 * @offset: offset of its start in a file that holds all RAM without gaps
 */
struct gmem_ram_range {
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
};

/**
 * gmem_ram_layout() - ranges of guest addresses for the RAM of a common machine
 * @ram: bytes of RAM, non-zero, a multiple of the page
 * @opts: NULL for defaults
 * @ret: filled with the ranges in GPA order; untouched on failure. NULL, with @max 0:
 *	only return their number
 * @max: entries in @ret
 *
 * RAM goes around the holes, lowest address first, and each range is one memslot,
 * fit for gmem_region_add(): what has 2^31 pages or more, 8 TiB on x86_64, is cut at a
 * multiple of the CPU's largest page (pages of 4 KiB: 1 GiB, 16 KiB: 64 GiB, 64 KiB:
 * 4 TiB). Without @holes and below 1 TiB there are at most 2 ranges.
 *
 * On x86_64 there is no RAM in 0xfd00000000 to 0xffffffffff, 12 GiB below 1 TiB. With
 * AMD's IOMMU these addresses are HyperTransport's: the kernel reserves them and refuses
 * to map guest memory there for a device (VFIO, iommufd). That depends on the host, so
 * the hole is there on every host: a guest with more than 1011 GiB, the only one to
 * notice, can move between hosts of Intel and of AMD, and its image be restored on each.
 * GMEM_RAM_LAYOUT_HYPERTRANSPORT puts RAM there, for a guest that was laid out so before.
 * QEMU since 7.1 has this hole only if the guest's CPU is AMD's, and then moves
 * all RAM above 4 GiB up to 1 TiB: for that layout, make 4 GiB to 1 TiB a hole.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: number of ranges, or -EINVAL bad size, hole, flag or machine, or the holes
 * leave no room for @ram, -ENOSPC there are more than @max, and gmem_last_error() says
 * how many, -E2BIG options newer than the library.
 */
GMEM_API int gmem_ram_layout(uint64_t ram, const struct gmem_ram_layout_opts *opts,
			     struct gmem_ram_range *ret, size_t max);

/* ---------------------------------------------------- shared and private -- */

/* States of guest memory */
#define GMEM_STATE_SHARED	1u /* host and guest reach it */
#define GMEM_STATE_PRIVATE	2u /* only the guest does */

/*
 * Memory of GMEM_BACKING_PRIVATE has two sides, and the state of an address
 * says which of them the guest uses. The kernel keeps the states by guest address
 * and has no call that returns them, so libgmem's record is the only one: convert
 * memory only through libgmem. Rules:
 *
 *   A region begins shared. Removing it makes its addresses shared again.
 *   A region that is private in part cannot be moved; split and rebind leave
 *   the states as they are, by address. gmem_vm_free() leaves the kernel's
 *   attributes as they are: see gmem_vm_adopt_private().
 *
 *   Views refuse private memory with -EACCES. The host address of the shared
 *   side stays mapped all the time and keeps its old contents, or zeros after a
 *   discard; your own memory that is a private mapping of a file, or userfaultfd's,
 *   has what GMEM_DISCARD_NOT_ZERO would leave. KVM's own accesses for the guest
 *   (paravirtual clocks, emulated instructions, page-table walks of emulation) go to
 *   that address even where the guest has made it private: so a guest can make KVM
 *   read and write the shared side, but never private memory.
 *
 *   GMEM_BACKING_INPLACE has one memory for both states. A conversion keeps the
 *   contents, discards nothing, and takes one ioctl for each region. If somebody
 *   has pinned a page without a lease, the conversion waits as it does for a
 *   lease, and then fails with -EBUSY.
 *
 *   A private file with GMEM_CREATE_MMAP has one memory for both states, too,
 *   which the host cannot read: views return -EACCES for all of it.
 *
 * During a conversion, gmem_vm_state() returns the state before or after it,
 * for some pages of the range the one and for others the other. To private:
 * every view that began before has ended when the first page changes, and views
 * that begin meanwhile get -EACCES. To shared: views get -EACCES until all of
 * the range is shared. The guest may see parts of a large range change before
 * others. Conversions that overlap are done one after the other, in the order
 * of the calls; others run in parallel. Changes of the layout of that range
 * wait for the end of the conversion.
 */

/**
 * struct gmem_state_range - range of addresses that have the same state
 * @gpa: start of the range
 * @size: bytes
 * @state: GMEM_STATE_*; 0: no memory, but a hole or a device
 * @backing: an enum gmem_backing; only GMEM_BACKING_PRIVATE and
 *	GMEM_BACKING_INPLACE can be converted, all else is always shared
 */
struct gmem_state_range {
	uint64_t gpa;
	uint64_t size;
	uint32_t state;
	uint32_t backing;
};

/**
 * gmem_vm_state() - get the states of a range: shared or private
 * @vm: handle
 * @gpa: guest physical address, any alignment
 * @size: bytes, non-zero; must not wrap
 * @ret: filled in GPA order, without gaps from @gpa on
 * @max: entries in @ret, at least 1
 *
 * If the last range filled in ends before @gpa + @size, call again from there.
 * While a conversion is under way, each page in it has the state before or the
 * state after it. A page may count as private before the kernel has made it so,
 * and even if the kernel then refuses.
 *
 * Thread-safe; waits while a change of the layout is applied. Since: 0.1.
 *
 * Return: number of entries filled in, or -EINVAL NULL argument, bad range, or
 * @max is 0.
 */
GMEM_API int gmem_vm_state(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			   struct gmem_state_range *ret, size_t max);

/* ---------------------------------------------------------------- leases -- */

/**
 * struct gmem_lease_opts - properties of a lease
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @holder: a name for error messages, copied, cut after 63 bytes; NULL: "unnamed"
 */
struct gmem_lease_opts {
	size_t      size;
	const char *holder;
};

/**
 * gmem_lease_new() - keep a range shared, and where it is
 * @vm: handle
 * @gpa: guest physical address, any alignment
 * @size: bytes, non-zero; must not wrap; may span regions
 * @opts: NULL for defaults
 * @ret: the lease, yours to free with gmem_lease_free()
 *
 * Take a lease to use host addresses of the range for longer than a view: for I/O
 * in flight, registered buffers, mappings of devices. While a lease is held,
 * conversions of the range to private and gmem_vm_discard() wait or fail, and
 * removing, moving, splitting and rebinding its regions fails, with -EBUSY and the
 * holder's name.
 *
 * A lease protects the memory, not only its guest address. Where the same part of a
 * file, or the same host memory (GMEM_REGION_HVA), is at another guest address of
 * @vm, it cannot be discarded or become private through that either, nor can
 * gmem_file_punch() free it, with the exception told there. The other region
 * may be removed or moved: the memory stays. Two handles of one file
 * (gmem_file_adopt()), and two mappings of one file of your own, are different
 * memory in this respect.
 *
 * Leases may overlap. While a conversion to private or a discard waits for leases on
 * memory, new ones there are refused.
 *
 * Thread-safe; never waits for a conversion, a discard or a lease. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or bad range, -EACCES part of the range
 * is private, -ENOENT it has a hole, -ENXIO part of it is a device's, -EBUSY it
 * is being converted to private, discarded, added, moved or removed, or its
 * memory is being discarded or converted through another guest address or by
 * gmem_file_punch(), -ENOMEM, -E2BIG options newer than the library.
 */
GMEM_API GMEM_CHECKED int gmem_lease_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
					 const struct gmem_lease_opts *opts,
					 struct gmem_lease **ret);

/**
 * gmem_lease_free() - end a lease
 * @lease: lease, or NULL
 *
 * Conversions that wait for the lease go on.
 *
 * Thread-safe for different leases. Since: 0.1.
 */
GMEM_API void gmem_lease_free(struct gmem_lease *lease);

/* ------------------------------------------------------------- listeners -- */

/**
 * gmem_listener_fn - is told of a change that was made
 * @data: data of struct gmem_listener_opts
 * @gpa: start of the range
 * @size: bytes
 */
typedef void (*gmem_listener_fn)(void *data, uint64_t gpa, uint64_t size);

/**
 * gmem_listener_veto_fn - is told of a change before it is made, and may refuse it
 * @data: data of struct gmem_listener_opts
 * @gpa: start of the range
 * @size: bytes
 *
 * Return: 0, or a negative errno to refuse the change.
 */
typedef int (*gmem_listener_veto_fn)(void *data, uint64_t gpa, uint64_t size);

/**
 * gmem_listener_region_fn - is told of memory that came, went or moved
 * @data: data of struct gmem_listener_opts
 * @region: the region, until this returns; see the callback for the time it is of
 * @gpa: start of the range that is meant
 * @size: bytes
 */
typedef void (*gmem_listener_region_fn)(void *data, const struct gmem_region_info *region,
					uint64_t gpa, uint64_t size);

/**
 * gmem_listener_region_veto_fn - is told before memory goes, and may refuse it
 * @data: data of struct gmem_listener_opts
 * @region: the region
 * @gpa: start of the range that is meant
 * @size: bytes
 *
 * Return: 0, or a negative errno to refuse it.
 */
typedef int (*gmem_listener_region_veto_fn)(void *data, const struct gmem_region_info *region,
					    uint64_t gpa, uint64_t size);

/**
 * struct gmem_listener_opts - callbacks of a listener
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @name: name for error messages, copied, cut after 63 bytes; NULL: "unnamed"
 * @data: passed to the functions below, each of which may be NULL
 * @before_private: shared memory is to become private: unmap it, from an IOMMU or
 *	from another process. It is still shared.
 * @undo_private: the memory did not become private after all: map it again
 * @after_shared: private memory has become shared: map it
 * @removed: a region was removed, moved, or bound to other memory with
 *	gmem_region_rebind(); also if it was moved to its own address, or bound to
 *	the memory that it had. Not called for a split, nor for the range of a
 *	device. Guest and views no longer reach the old memory through the old
 *	address; its host address stays mapped until this returns.
 *
 * @region_added: memory came into the layout, or was there when the listener came: map
 *	it. Called for each part of a region that is shared, lowest first; a part that
 *	is private is told by @after_shared when it becomes shared
 * @region_moved: the region moved from [@gpa, @gpa + @size); @region says where to, and
 *	all else of it stayed. Between the moves of one change two regions can be at one
 *	address, see below. NULL: the move is told by @region_removed and @region_added
 * @region_removed: the memory of @region, which is as it was before, is not at that
 *	guest address any more, as with @removed: unmap it. @gpa and @size are all of it
 * @before_discard: shared memory is to be discarded: unmap it. It still is as it was
 * @undo_discard: the memory was not discarded after all: map it again
 * @populated: shared memory was populated, with gmem_vm_populate() or
 *	gmem_populate_run(), which plugs in what was discarded: map what is not mapped
 *
 * Callbacks run in the thread that makes the call they are about: that converts,
 * changes the layout, discards, populates (with workers in threads that the library
 * started, in which signals are blocked), or creates the listener. That call keeps its
 * ranges to itself until they return: a conversion the range that it converts, a change
 * of the layout the ranges that its regions leave and enter, a discard and a populate
 * the piece that it works on, and gmem_listener_new() with region_added all addresses.
 * Populating shares its range with other populating, so two threads can tell of one
 * range at the same time. These are a callback's own ranges. Callbacks of other calls
 * may run at the same time in other threads.
 *
 * A change of the layout is told when it is made and the kernel has agreed; a change that
 * fails is told to nobody. The new layout is in force then: the memslots of added
 * regions are there, those of removed ones are gone, and views use the new ones. First,
 * in the order of the steps, all that is removed is told (@removed, then
 * @region_removed), then all moves, then all that is added. The old host addresses stay
 * mapped and the old fds open until the last callback has returned. gmem_region_rebind()
 * is told as removed and added. A split is not told: guest and host addresses, files and
 * offsets of all memory stay; only the handle and the memslot number of the upper part
 * are new. Ranges of devices (GMEM_REGION_DEVICE) are not told. Memory of every kind is:
 * look at kind of struct gmem_region_info. gmem_vm_free() tells nothing. If the kernel
 * refuses to undo a change (-ENOTRECOVERABLE), states of memory may be what nobody was
 * told.
 *
 * When two regions trade places, @region_moved is called for one and then for the other.
 * Between these calls a listener has two regions at one guest address: the one that came
 * there, and the one that has yet to be told to leave. So find what moves by its old
 * guest address and its host address together. "Unmap the old range, map the new one"
 * does not do: it unmaps what has just come. A listener that keeps one entry for each
 * guest address leaves @region_moved NULL, and never has two at one: it is told of all
 * that leaves before anything comes.
 *
 * A discard asks for each piece, 64 MiB in one region at most, right before it. If a
 * listener refuses, those that agreed get undo_discard, last first, and the discard ends
 * there; so they do if the kernel refuses. What was discarded is not told again: it is as
 * before_discard left it, until it is populated. Of a huge page of which only a part is
 * discarded nothing is freed, but the part is told. Not told are: gmem_file_punch(); the
 * same memory at another guest address, which a discard frees, too; the other side that
 * conversions discard, at once or later, which no device has; and memory that comes back
 * because a guest, a view, gmem_vm_load() or gmem_vm_restore() touches it. The library
 * does not record what was discarded: region_added tells a listener that comes of all
 * shared memory. A VMM that unplugs memory populates it when it is plugged in again, and
 * does not map what is unplugged at the moment.
 *
 * A callback must not call these functions for the same VM. They fail with
 * -EDEADLK:
 *
 *	gmem_region_add(), gmem_region_remove(), gmem_region_move(),
 *	gmem_region_split(), gmem_region_rebind(), gmem_change_apply(),
 *	gmem_region_set_dirty_log(), gmem_vm_reserve_slots(), gmem_listener_new(),
 *	gmem_export_new(), gmem_vm_dump(), gmem_vm_serve_dump(), gmem_dirty_new(),
 *	gmem_dirty_collect(), gmem_dirty_peek(), gmem_vm_bind_shared(), saves with a tracker,
 *	gmem_migration_new(), and gmem_vm_populate() with more than one thread.
 *
 * Nor must it call gmem_export_free(), which does nothing then, functions of a migration, whose
 * rounds fail, gmem_dirty_free(), which ends the tracker later, or gmem_vm_free() and
 * gmem_vm_free_with_vm(), which do not notice.
 *
 * A callback may call these functions for other ranges than its own:
 *
 *	gmem_vm_convert(), gmem_vm_adopt_private(), gmem_vcpu_handle_exit(),
 *	gmem_vm_discard(), gmem_vm_discard_list(), gmem_vm_discard_pfns(),
 *	gmem_vm_discard_owed(), gmem_populate_new(), gmem_populate_run(), gmem_populate_result(),
 *	gmem_vm_populate() with one thread, gmem_vm_numa(), gmem_vm_set_numa(),
 *	gmem_region_get_dirty_log(), and gmem_region_stats() and gmem_vm_stats()
 *	with GMEM_STATS_RESIDENT.
 *
 * They fail with -EDEADLK if their range overlaps any range of the call that
 * the callback is part of, if an earlier call that waits for such a range is in
 * front of them, or if two callbacks would wait for each other. gmem_vm_stats()
 * looks at all memory, and gmem_vm_discard_owed() at all memory that is owed.
 * gmem_populate_result() does not fail, but leaves counted at 0.
 *
 * A callback may always call all other functions, such as views, gmem_vm_state(),
 * gmem_vm_regions(), gmem_vm_find_gpa(), gmem_vm_find_hva(), gmem_vm_stats() without
 * GMEM_STATS_RESIDENT, gmem_lease_new(), gmem_lease_free(), functions of files such as
 * gmem_file_punch(), gmem_change_new() and the functions that add steps, other transfers,
 * gmem_export_dispatch(), gmem_export_table(), gmem_peer_add() and gmem_peer_remove().
 * On memory that is becoming private or being removed, leases and transfers are refused
 * with -EBUSY. A callback must end every view that it begins. For gmem_listener_free(),
 * see there.
 *
 * A callback must not wait for another thread that makes a call which must wait
 * for the callback: the library cannot see that. Calls for other VMs are not
 * restricted, but two VMs' callbacks that wait for each other's work are not
 * found out either.
 */
struct gmem_listener_opts {
	size_t      size;
	const char *name;
	void       *data;
	gmem_listener_veto_fn before_private;
	gmem_listener_fn undo_private;
	gmem_listener_fn after_shared;
	gmem_listener_fn removed;
	gmem_listener_region_fn region_added;
	gmem_listener_region_fn region_moved;
	gmem_listener_region_fn region_removed;
	gmem_listener_region_veto_fn before_discard;
	gmem_listener_region_fn undo_discard;
	gmem_listener_region_fn populated;
};

/**
 * gmem_listener_new() - register callbacks for memory that comes, goes and changes
 * @vm: handle
 * @opts: the callbacks; copied. NULL: none
 * @ret: the listener, yours to free with gmem_listener_free()
 *
 * A conversion to private calls before_private of each listener, in the order in
 * which they were created, for all parts of the range that are not private yet. If
 * a listener refuses, or the kernel does later, those that agreed get undo_private
 * for the same parts, last listener first, and nothing changes. Each listener is
 * told of a conversion as a whole or not at all.
 *
 * A listener with region_added is told the present layout before this returns: the
 * shared memory of each region, lowest address first. What it is told is one moment: no
 * change is between that and the first that the listener hears of, and none is told
 * twice. So what it keeps is, whenever no call is under way, what gmem_vm_regions() and
 * gmem_vm_state() say, less the ranges of devices, and less what was discarded and has
 * not been populated since.
 *
 * What callbacks may call says struct gmem_listener_opts.
 *
 * Thread-safe. Waits for the work on memory that is under way, such as a conversion
 * that asks other listeners, but not for work that waits itself; nobody waits for this
 * call. With region_added it waits, in its turn, for all work that came before, and all
 * later work waits until the layout has been told. Work that begins from now on knows the
 * listener, perhaps before this returns, when @ret is set already. Do not call it between
 * gmem_view_begin() and gmem_view_end(). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or bad options, -E2BIG options newer than the
 * library, -ENOMEM, -EDEADLK called from a callback, -EBUSY with region_added: what is
 * waited for has not ended within wait_ms of struct gmem_vm_opts.
 */
GMEM_API GMEM_CHECKED int gmem_listener_new(struct gmem_vm *vm,
					    const struct gmem_listener_opts *opts,
					    struct gmem_listener **ret);

/**
 * gmem_listener_free() - end a listener
 * @listener: listener, or NULL
 *
 * Afterwards none of its functions is called, and none still runs.
 *
 * From inside a callback of this VM's, of any listener, the call cannot wait. Then no
 * function of @listener begins any more, not even for the conversion under way, but
 * one that another thread is in may still run; keep its data until a later call of
 * gmem_listener_new() or gmem_listener_free(), not from a callback, has returned.
 *
 * Thread-safe; waits as gmem_listener_new(): conversions that have asked the listener
 * tell it of their end, and later ones do not call it. Since: 0.1.
 */
GMEM_API void gmem_listener_free(struct gmem_listener *listener);

/* ----------------------------------------------------------------- views -- */

/*
 * Through a view, one thread uses a VM's memory while other threads change the
 * layout. A lookup takes no lock, waits for no other thread, and writes no memory
 * that another reader uses. The two structs are public only for the inline
 * functions below: do not use their members in any other way.
 */

/**
 * struct gmem_table - translation of guest addresses to host addresses
 * @count: number of entries that follow this struct in memory, one for each GiB of guest
 *	addresses. An entry that is odd is the code of memory, hva - gpa + 1, of the whole GiB.
 *	An even entry with the bit 2 is the address of 512 entries, and 2: one for each
 *	2 MiB, and likewise for 64 KiB, of which a 2 MiB has 32. Others tell nothing here
 */
struct gmem_table {
	uint64_t count;
};

/**
 * struct gmem_newest - what the views of a VM begin with
 * @table: the VM's newest table
 * @period: grows whenever a thread begins to wait for views; never 0. Odd: membarrier(2)
 *	is not available, so that readers need a barrier
 * @dirty: what is written is marked there; NULL: there is no tracker
 */
struct gmem_newest {
	const struct gmem_table *table;
	uint64_t period;
	struct gmem_dirty_pages *dirty;
};

/**
 * struct gmem_view - access of one thread to guest memory
 * @newest: of the VM
 * @table: the table of this view, between gmem_view_begin() and gmem_view_end(); else NULL
 * @period: of @newest when the view began, between these two, or in a call; otherwise 0
 * @depth: number of further calls of gmem_view_begin() without their gmem_view_end(), and
 *	GMEM_VIEW_BORROWED
 */
struct gmem_view {
	const struct gmem_newest *newest;
	const struct gmem_table *table;
	uint64_t period;
	uint64_t depth;
};

/* In the depth: a signal's handler has begun the view inside of another use of it. */
#define GMEM_VIEW_BORROWED (1ull << 63)

/**
 * gmem_view_new() - create a view of a VM's memory
 * @vm: handle
 * @ret: the view, for one thread at a time; yours to free with gmem_view_free()
 *
 * Where membarrier(2) is forbidden, each gmem_view_begin() executes a barrier.
 *
 * Thread-safe. Do not call it between gmem_view_begin() and gmem_view_end().
 * Source: membarrier(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_view_new(struct gmem_vm *vm, struct gmem_view **ret);

/**
 * gmem_view_free() - free a view
 * @view: view, not between gmem_view_begin() and gmem_view_end(); or NULL
 *
 * If a VM's end waited for the view in vain, and for no other that is left, the memory of
 * the VM is unmapped now: see gmem_vm_free().
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_view_free(struct gmem_view *view);

/**
 * gmem_vm_thread_view() - the calling thread's own view of a VM's memory
 * @vm: handle
 * @ret: the view, for this thread alone; not yours to free
 *
 * The first call in a thread makes the view as gmem_view_new() does, later ones return
 * the same, in a few nanoseconds: faster than making a view, slower than keeping @ret. A
 * thread may have views of several VMs; the one it asked for last is found first.
 *
 * A view ends with its thread. The thread that frees the VM loses it then. In every other
 * thread it answers -ESTALE from then on, as any view, until that thread's first call for
 * another VM frees it; so a thread that lives longer than its VMs keeps the last of them.
 *
 * The first call of all takes one of the process's keys (pthread_key_create(3): glibc has
 * 1024 for all), which is given back when the library is unloaded. The views of threads
 * that live longer than the library are never freed. After fork(2) the child's thread has
 * the view that it had in the parent.
 *
 * Thread-safe. Do not call it first between gmem_view_begin() and gmem_view_end() of
 * another view. Source: pthread_setspecific(3), membarrier(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -EAGAIN the process has no key left, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_vm_thread_view(struct gmem_vm *vm, struct gmem_view **ret);

/**
 * gmem_view_begin() - keep the present layout until gmem_view_end()
 * @view: view
 *
 * Host addresses from @view stay mapped until gmem_view_end(), even if their region is removed
 * meanwhile: the removal waits. So they do if the VM's handle or the import is freed, whether that
 * waits long enough or not. A conversion waits likewise, but addresses asked for after it began are
 * refused with -EACCES. So keep the time in between short, do not sleep, and neither change the
 * layout nor convert memory nor create or free views. Calls nest, also in the handler of a signal
 * that interrupts any use of @view by its thread.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_INLINE void gmem_view_begin(struct gmem_view *view)
{
	const struct gmem_newest *newest = view->newest;
	uint64_t period;

	if (__builtin_expect(__atomic_load_n(&view->period, __ATOMIC_RELAXED) != 0, 0)) {
		view->depth++;
		if (!view->table) {
			view->depth |= GMEM_VIEW_BORROWED;
			view->table = __atomic_load_n(&newest->table, __ATOMIC_SEQ_CST);
		}
		return;
	}

	/* Pairs with the writer, which stores the table and the period, then loads view->period. */
	period = __atomic_load_n(&newest->period, __ATOMIC_ACQUIRE);
	if (__builtin_expect(period & 1, 0)) {
		__atomic_store_n(&view->period, period, __ATOMIC_SEQ_CST);
		view->table = __atomic_load_n(&newest->table, __ATOMIC_SEQ_CST);
		return;
	}

	/* The compiler must keep this order; the writer's membarrier(2) makes the CPU keep it. */
	__atomic_store_n(&view->period, period, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	view->table = __atomic_load_n(&newest->table, __ATOMIC_ACQUIRE);
}

/**
 * gmem_view_end() - end what gmem_view_begin() began
 * @view: view
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_INLINE void gmem_view_end(struct gmem_view *view)
{
	if (__builtin_expect(view->depth != 0, 0)) {
		if (--view->depth == GMEM_VIEW_BORROWED) {
			view->table = 0;
			view->depth = 0;
		}
		return;
	}

	/* Pairs with the acquire load of the thread that waits to unmap. */
	__atomic_store_n(&view->period, 0, __ATOMIC_RELEASE);
	/* A signal's handler has to find no table wherever it interrupts the next use. */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	view->table = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/**
 * gmem_view_hva_slow() - part of gmem_view_hva() that is not inline
 * @view: as gmem_view_hva()
 * @gpa: as gmem_view_hva()
 * @size: as gmem_view_hva()
 * @ret_hva: as gmem_view_hva()
 *
 * Call gmem_view_hva(), which does the same and is faster.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_hva(), and -EINVAL for a NULL argument.
 */
GMEM_API int gmem_view_hva_slow(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				void **ret_hva);

/**
 * gmem_view_hva() - host address of guest memory
 * @view: view, between gmem_view_begin() and gmem_view_end()
 * @gpa: guest physical address, any alignment
 * @size: bytes, non-zero, that must be contiguous for the host
 * @ret_hva: host address of @gpa, to read and to write, valid until gmem_view_end()
 *
 * An access there can raise SIGBUS: see gmem_region_hva(). It is an instruction of
 * yours, from which the library does not recover: a store to your own memory that is
 * mapped PROT_READ raises SIGSEGV, though it is found here. For memory that may only be
 * read there is gmem_view_hva_read().
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -ENOENT there is no region at @gpa, -ESTALE there was one and it
 * was removed (a limited number of those is remembered), or the VM's handle was freed,
 * -ENXIO the range of a device, -EACCES private memory, -EROFS it may only be read,
 * -ERANGE there is memory at @gpa but @size bytes are not contiguous, -EINVAL @size
 * is 0.
 */
GMEM_INLINE int gmem_view_hva(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				void **ret_hva)
{
	const struct gmem_table *table = view->table;
	const uint64_t *entries = (const uint64_t *)(table + 1);
	uint64_t entry;

	if (__builtin_expect(gpa >> 30 >= table->count, 0))
		goto slow;

	/* Each level compares with its own size, and jumps only where the next one is needed. */
	entry = entries[gpa >> 30];
	if (entry & 1) {
		if (__builtin_expect(size - 1 > (~gpa & 0x3fffffff), 0))
			goto slow;
		goto found;
	}
	if (__builtin_expect(!(entry & 2), 0))
		goto slow;

	/* This load and the next one pair with the stores of a conversion to shared. */
	entries = (const uint64_t *)(uintptr_t)(entry - 2);
	entry = __atomic_load_n(&entries[gpa >> 21 & 511], __ATOMIC_ACQUIRE);
	if (__builtin_expect(entry & 1, 1)) {
		if (__builtin_expect(size - 1 > (~gpa & 0x1fffff), 0))
			goto slow;
		goto found;
	}
	if (!(entry & 2))
		goto slow;

	entries = (const uint64_t *)(uintptr_t)(entry - 2);
	entry = __atomic_load_n(&entries[gpa >> 16 & 31], __ATOMIC_ACQUIRE);
	if (!(entry & 1) || __builtin_expect(size - 1 > (~gpa & 0xffff), 0))
		goto slow;
found:
	*ret_hva = (void *)(uintptr_t)(gpa + entry - 1);
	return 0;
slow:
	return gmem_view_hva_slow(view, gpa, size, ret_hva);
}

/**
 * gmem_view_hva_read() - host address of guest memory, for reading
 * @view: view, between gmem_view_begin() and gmem_view_end()
 * @gpa: guest physical address, any alignment
 * @size: bytes, non-zero, that must be contiguous for the host
 * @ret_hva: host address of @gpa, valid until gmem_view_end()
 *
 * As gmem_view_hva(), but also for memory that may only be read, which is imported
 * memory without GMEM_RIGHT_WRITE: a store there raises SIGSEGV.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_hva(), without -EROFS, and -EINVAL for a NULL argument.
 */
GMEM_API int gmem_view_hva_read(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				const void **ret_hva);

/**
 * gmem_view_iovec() - host addresses of a range across regions
 * @view: view, between gmem_view_begin() and gmem_view_end()
 * @gpa: guest physical address, any alignment
 * @size: bytes, non-zero; must not wrap
 * @iov: filled in GPA order, for readv(2), io_uring and the like; on failure its
 *	first entries may have been written to
 * @max: entries in @iov
 *
 * The memory may be read and written. Adjacent regions that are contiguous for the
 * host, too, share an entry.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: number of entries filled in, or -ENOENT, -ESTALE, -ENXIO, -EACCES or -EROFS
 * as gmem_view_hva() for the first byte that has no such memory, -ENOSPC the range
 * takes more than @max entries, -EINVAL @size is 0 or the range wraps.
 */
GMEM_API int gmem_view_iovec(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			     struct iovec *iov, size_t max);

/**
 * gmem_view_iovec_read() - host addresses of a range across regions, for reading
 * @view: as gmem_view_iovec()
 * @gpa: as gmem_view_iovec()
 * @size: as gmem_view_iovec()
 * @iov: as gmem_view_iovec(), for writev(2) and the like: the memory is only read
 * @max: as gmem_view_iovec()
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_iovec(), without -EROFS.
 */
GMEM_API int gmem_view_iovec_read(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				  struct iovec *iov, size_t max);

/*
 * The functions below access guest memory. They begin and end the view
 * themselves, take ranges of any alignment across regions, and survive pages
 * that the kernel cannot provide, or that are mapped without the permission or not
 * at all: there they stop, return -EFAULT (with recovery, -EHWPOISON for a page the
 * hardware lost), and say in @ret_done how many bytes from the start were done. The
 * sentence has the gpa and the host address of the byte that failed, and what is
 * wrong there. So a write to a ROM that is mapped PROT_READ is -EFAULT, and so is
 * every access to a block that is PROT_NONE, or to memory that was unmapped.
 *
 * With gmem_recovery_enable() they cost what memcpy(3) costs; without it, or with a
 * view that was created while SIGBUS or SIGSEGV was blocked, each call makes a system
 * call, process_vm_readv(2), and a store or compare-exchange of a number another one,
 * futex(2). Device memory, which the kernel does not copy, is then -EFAULT. A number
 * is accessed with one instruction in any case: without recovery, the library asks the
 * kernel just before whether the page is there, and a page that goes away in between
 * kills the process. Nothing else can.
 *
 * With recovery, 2, 4 or 8 bytes at a multiple of that are copied and filled as one
 * number, of which nobody sees a part. Use gmem_view_load() and gmem_view_store()
 * where the order matters, too.
 *
 * Several accesses that belong together, such as those of one request of a virtqueue,
 * may be made between one gmem_view_begin() and one gmem_view_end():
 *
 *	gmem_view_begin(view);
 *	err = gmem_view_load(view, avail + 2, 2, GMEM_ACQUIRE, &index);
 *	if (!err)
 *		err = gmem_view_read(view, avail + 4 + 2 * (next % size), &head, 2, NULL);
 *	if (!err && head < size)
 *		err = gmem_view_read(view, table + 16 * head, &descriptor, 16, NULL);
 *	gmem_view_end(view);
 *
 * All of them use one layout, and each costs its lookup and its loads and stores alone,
 * for up to 64 bytes a few nanoseconds. What gmem_view_begin() says of the time in between
 * holds.
 */

/**
 * gmem_view_read() - copy from guest memory
 * @view: view
 * @gpa: guest physical address to read from, any alignment
 * @buf: receives the bytes
 * @size: bytes; 0 does nothing; must not wrap
 * @ret_done: bytes copied, also on failure; NULL if not wanted
 *
 * A long access is not one moment: unless it is made between gmem_view_begin() and
 * gmem_view_end(), it begins anew at each multiple of 2 MiB, and memory beyond may be
 * converted, removed or moved before it gets there. That holds for every access
 * function with a size.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0 if all bytes were copied, or -ENOENT, -ESTALE, -ENXIO or -EACCES as
 * gmem_view_hva(), -EFAULT or -EHWPOISON for the first byte that could not be
 * copied, -EINVAL NULL argument, or the range wraps.
 */
GMEM_API int gmem_view_read(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size,
			    uint64_t *ret_done);

/**
 * gmem_view_write() - copy to guest memory
 * @view: view
 * @gpa: guest physical address to write to, any alignment
 * @buf: the bytes
 * @size: bytes; 0 does nothing; must not wrap
 * @ret_done: bytes copied, also on failure; NULL if not wanted
 *
 * The host may write to memory that is read-only for the guest, if it is mapped for
 * writing; else every function that writes returns -EFAULT. In imported memory
 * that was given for reading only, it returns -EROFS.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_read(), and -EROFS.
 */
GMEM_API int gmem_view_write(struct gmem_view *view, uint64_t gpa, const void *buf,
			     uint64_t size, uint64_t *ret_done);

/**
 * gmem_view_copy() - copy from guest memory to guest memory
 * @view: view
 * @to: guest physical address to write to, any alignment
 * @from: guest physical address to read from, any alignment
 * @size: bytes; 0 does nothing; neither range may wrap
 * @ret_done: bytes copied, also on failure; NULL if not wanted
 *
 * Copies from the lowest address upwards; the ranges must not overlap.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_write(); -EINVAL also if the ranges overlap.
 */
GMEM_API int gmem_view_copy(struct gmem_view *view, uint64_t to, uint64_t from, uint64_t size,
			    uint64_t *ret_done);

/**
 * gmem_view_fill() - set guest memory to one byte
 * @view: view
 * @gpa: guest physical address to write to, any alignment
 * @byte: value of each byte
 * @size: bytes; 0 does nothing; must not wrap
 * @ret_done: bytes set, also on failure; NULL if not wanted
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_write().
 */
GMEM_API int gmem_view_fill(struct gmem_view *view, uint64_t gpa, uint8_t byte, uint64_t size,
			    uint64_t *ret_done);

/**
 * gmem_view_compare() - compare guest memory with a buffer
 * @view: view
 * @gpa: guest physical address to read from, any alignment
 * @buf: bytes to compare with
 * @size: bytes; 0 compares equal; must not wrap
 * @ret_order: below, at or above 0 like memcmp(3), guest memory first
 * @ret_done: bytes found equal, also on failure; NULL if not wanted
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_read().
 */
GMEM_API int gmem_view_compare(struct gmem_view *view, uint64_t gpa, const void *buf,
			       uint64_t size, int *ret_order, uint64_t *ret_done);

/**
 * gmem_view_string() - copy a string from guest memory
 * @view: view
 * @gpa: guest physical address of its first byte
 * @buf: receives the string, terminated if it fits
 * @max: bytes in @buf, non-zero
 * @ret_length: bytes before the terminator; set on success
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -ENAMETOOLONG no terminator in the first @max bytes, and as
 * gmem_view_read().
 */
GMEM_API int gmem_view_string(struct gmem_view *view, uint64_t gpa, char *buf, uint64_t max,
			      uint64_t *ret_length);

/* Orderings of single loads and stores, as in C11 */
#define GMEM_RELAXED	0u
#define GMEM_ACQUIRE	1u
#define GMEM_RELEASE	2u
#define GMEM_SEQ_CST	3u

/**
 * gmem_view_load() - load an aligned number atomically
 * @view: view
 * @gpa: a multiple of @width
 * @width: 1, 2, 4 or 8 bytes
 * @order: GMEM_RELAXED, GMEM_ACQUIRE or GMEM_SEQ_CST
 * @ret: the number, in the host's byte order
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad width, alignment or order, and as gmem_view_read().
 */
GMEM_API int gmem_view_load(struct gmem_view *view, uint64_t gpa, uint32_t width,
			    uint32_t order, uint64_t *ret);

/**
 * gmem_view_store() - store an aligned number atomically
 * @view: view
 * @gpa: a multiple of @width
 * @width: 1, 2, 4 or 8 bytes
 * @order: GMEM_RELAXED, GMEM_RELEASE or GMEM_SEQ_CST
 * @value: the number, in the host's byte order; must fit @width
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: as gmem_view_load(), and -EROFS; -EINVAL also if @value does not fit.
 */
GMEM_API int gmem_view_store(struct gmem_view *view, uint64_t gpa, uint32_t width,
			     uint32_t order, uint64_t value);

/**
 * gmem_view_compare_exchange() - store an aligned number if memory has the expected one
 * @view: view
 * @gpa: a multiple of @width
 * @width: 1, 2, 4 or 8 bytes
 * @order: any of the four, for success; on failure the order of the load in it
 * @expected: the number that memory must have; receives the number it had
 * @desired: the number to store; both must fit @width
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 1 if stored, 0 if memory had another number, or as gmem_view_store().
 */
GMEM_API int gmem_view_compare_exchange(struct gmem_view *view, uint64_t gpa, uint32_t width,
					uint32_t order, uint64_t *expected, uint64_t desired);

/* -------------------------------------------------------- layout changes -- */

/**
 * gmem_change_new() - begin a change of a VM's layout
 * @vm: handle
 * @ret: the change, empty; yours to free with gmem_change_free()
 *
 * The functions below add steps to the change; gmem_change_apply() does all of
 * them or none.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_change_new(struct gmem_vm *vm, struct gmem_change **ret);

/**
 * gmem_change_free() - free a change
 * @change: change, or NULL
 *
 * Steps that were not applied have no effect.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_change_free(struct gmem_change *change);

/**
 * gmem_change_add() - add a step: add a region
 * @change: change
 * @gpa: as gmem_region_add()
 * @size: as gmem_region_add()
 * @opts: as gmem_region_add(); the plan and file in it must live until the change
 *	is applied or freed
 * @ret: set by gmem_change_apply() when it succeeds
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or the errors that gmem_region_add() finds in the arguments alone, -ESTALE
 * after gmem_vm_free().
 */
GMEM_API GMEM_CHECKED int gmem_change_add(struct gmem_change *change, uint64_t gpa,
					  uint64_t size, const struct gmem_region_opts *opts,
					  struct gmem_region **ret);

/**
 * gmem_change_remove() - add a step: remove a region
 * @change: change
 * @region: region of the same VM; invalid once the change is applied
 *
 * Regions that the same change adds may use its range, memslot number and file
 * range, and take over the state of its memory (GMEM_REGION_KEEP_STATE).
 *
 * The region must stay until the change is applied or freed: do not remove it
 * in another way meanwhile, nor in another change.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or a region of another VM, -EEXIST the
 * region is in another step of this change, -ENOMEM, -ESTALE after gmem_vm_free().
 */
GMEM_API int gmem_change_remove(struct gmem_change *change, struct gmem_region *region);

/**
 * gmem_change_move() - add a step: move a region
 * @change: change
 * @region: region of the same VM
 * @gpa: as gmem_region_move()
 *
 * Regions of one change may trade places. The region must stay as with
 * gmem_change_remove().
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL as gmem_region_move(), or a region of another VM,
 * -EEXIST the region is in another step of this change, -ENOTRECOVERABLE it has
 * lost its memslot, -ENOMEM, -ESTALE after gmem_vm_free().
 */
GMEM_API int gmem_change_move(struct gmem_change *change, struct gmem_region *region,
			      uint64_t gpa);

/**
 * gmem_change_apply() - do all steps of a change, or none
 * @change: change; empty again after success
 *
 * First the library checks and prepares everything: overlaps in the new layout,
 * file ranges, memslot numbers, mappings. Then it deletes memslots, moves those it
 * can, and adds others, in the order of the steps; it does not touch the memslots of
 * other regions. Then readers see all of the new layout. When no view can have the
 * old one any more, the memory of removed regions is unmapped. If the kernel refuses
 * a step, the steps before it are undone, and gmem_last_error() says which step it
 * was.
 *
 * The call waits for conversions and other work that was there before on the
 * ranges it changes, and for another change; only later work on the same ranges
 * waits for it. Other threads see the old layout until the kernel has agreed to
 * all steps.
 *
 * After a failure the steps stay: apply the change again, add steps to it, or
 * free it. But if the kernel kept the memslot of a region that was to be added
 * (-ENOTRECOVERABLE), that step cannot be done again, and every later call
 * fails.
 *
 * Thread-safe for different changes. It waits for views between gmem_view_begin()
 * and gmem_view_end(), so do not call it between these. Source:
 * KVM_SET_USER_MEMORY_REGION2 and KVM_SET_USER_MEMORY_REGION. Since: 0.1.
 *
 * Return: 0, or as gmem_region_add() and gmem_region_move(), where the layout is as it
 * was, -ESTALE after gmem_vm_free(), or -ENOTRECOVERABLE the kernel refused to undo, too:
 * gmem_last_error() says what was refused first, and what could not be undone.
 */
GMEM_API int gmem_change_apply(struct gmem_change *change);

/* ------------------------------------------------------------ conversion -- */

/* Flags of struct gmem_convert_opts */
#define GMEM_CONVERT_ALL	(1ull << 0) /* convert even what is recorded as converted */

/* Treatment of the side that is not in use any more: struct gmem_convert_opts.discard */
#define GMEM_DISCARD_NOW	0u /* given back to the host before the call returns */
#define GMEM_DISCARD_LATER	1u /* given back by gmem_vm_discard_owed() */
#define GMEM_DISCARD_NEVER	2u /* kept with its contents: doubles the memory */

/**
 * struct gmem_convert_opts - how to convert
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_CONVERT_*; unknown bits are -EINVAL
 * @discard: GMEM_DISCARD_*
 * @wait_ms: milliseconds to wait in all, for earlier work, leases, peers and views;
 *	0: fail at once if there is a lease, and else wait as long as it takes, or as
 *	wait_ms of struct gmem_vm_opts says. See "Waiting" there.
 */
struct gmem_convert_opts {
	size_t   size;
	uint64_t flags;
	uint32_t discard;
	uint32_t wait_ms;
};

/**
 * struct gmem_conversion - result of a conversion
 * @gpa: start of the part that this conversion put into the requested state
 * @size: bytes of that part: after success the whole range, or 0 if all of it was
 *	in that state before; after a failure 0, or, with -ENOTRECOVERABLE, the
 *	part that the kernel refused to convert back
 * @converted: bytes whose state changed
 * @discarded: bytes of the other side that were given back to the host
 * @owed: bytes of the other side that gmem_vm_discard_owed() has yet to give back, with
 *	those that the kernel refused to free, and with parts of huge pages of hugetlb,
 *	which are freed by it when all of the huge page is private
 * @ioctls: number of ioctls made, KVM_SET_MEMORY_ATTRIBUTES or that of
 *	struct gmem_inplace_opts
 */
struct gmem_conversion {
	uint64_t gpa;
	uint64_t size;
	uint64_t converted;
	uint64_t discarded;
	uint64_t owed;
	uint64_t ioctls;
};

/**
 * gmem_vm_convert() - make guest memory private, or shared
 * @vm: handle
 * @gpa: guest physical address, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; may span regions
 * @state: GMEM_STATE_SHARED or GMEM_STATE_PRIVATE
 * @opts: NULL for defaults: do not wait for leases, discard at once
 * @ret: result, filled in on failure, too; NULL if not wanted
 *
 * Every byte must be memory that can be converted, which is checked before
 * anything changes. Parts that are in @state already are skipped; if all of the
 * range is, the library makes no system call. Adjacent parts, in one region or
 * several, take one ioctl for each GiB, in which KVM converts page by page and no
 * other memslot of the VM can change. If the kernel refuses an ioctl, those before
 * it are undone. With GMEM_CONVERT_ALL the kernel is told of every byte; what was
 * recorded as converted does not count, is not undone, and listeners do not hear
 * of it.
 *
 * With GMEM_BACKING_PRIVATE contents are not copied: the guest finds the previous
 * contents of the side it now uses, or, if that was discarded, zeros, or what a file
 * mapped privately or the handler of userfaultfd has for it. A huge page of hugetlb
 * that a conversion lets go of only in part counts as owed. The discard
 * policy holds for all of the range. If the kernel refuses to free memory, the
 * conversion succeeds nevertheless; the refusal goes to the log, and the memory
 * counts as owed. Memory that is one for both sides, as with GMEM_BACKING_INPLACE,
 * owes nothing.
 *
 * A conversion waits for earlier work on the range. To private, it then waits for
 * leases, asks the listeners, and waits until every view that began before has ended:
 * for all of that up to wait_ms of @opts. A conversion to shared calls the listeners
 * once views can use the memory. If something is in the way, nothing changes.
 *
 * Thread-safe. Do not call it between gmem_view_begin() and gmem_view_end() of
 * the same thread. Source: KVM_SET_MEMORY_ATTRIBUTES; for discarding madvise(2)
 * and fallocate(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, state or options, -ENOENT the range has a hole,
 * -ENXIO part of it is a device's, -EOPNOTSUPP memory in it cannot be converted,
 * -EBUSY somebody holds a lease, or earlier work or a view has not ended within
 * wait_ms, -ETIMEDOUT a peer did not give it back (gmem_peer_add()) in its time or
 * within wait_ms, -EREMOTEIO it refused (other errnos are named there), -EDEADLK a
 * callback calls it for its own range, -ENOMEM, -E2BIG options newer than the library,
 * the errno of a listener that refused, or the kernel's own errno: nothing changed;
 * -ENOTRECOVERABLE the kernel refused to undo, see @ret, or a region in the range has
 * lost its memslot.
 */
GMEM_API int gmem_vm_convert(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t state,
			     const struct gmem_convert_opts *opts, struct gmem_conversion *ret);

/**
 * gmem_vm_discard_owed() - give back the memory that conversions left for later
 * @vm: handle
 * @ret_done: bytes given back, also on failure; NULL if not wanted
 *
 * Adjacent ranges are given back together, no matter how many conversions left
 * them. Memory that was converted back meanwhile is in use again, and is kept.
 * What a region owes moves and splits with it, and ends with the memory: when the
 * region is removed, or, for the file's side, bound to another file. The work goes
 * in pieces of 64 MiB, between which conversions get their turn.
 *
 * Thread-safe; waits for conversions of the same ranges. Source: madvise(2) and
 * fallocate(2) with FALLOC_FL_PUNCH_HOLE. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -EBUSY somebody holds a lease on the
 * memory, -EDEADLK a callback calls it, and its own range owes memory, -ENOMEM,
 * or the kernel's own errno: the rest is still owed.
 */
GMEM_API int gmem_vm_discard_owed(struct gmem_vm *vm, uint64_t *ret_done);

/**
 * gmem_vm_adopt_private() - record memory as private that the kernel has as private
 * @vm: handle
 * @gpa: guest physical address, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; may span regions
 *
 * For a VM whose attributes were set before the handle was created: call this once
 * the regions are added. The kernel has no call that returns attributes, so this
 * does not check them. If you do not know the kernel's attributes, use
 * gmem_vm_convert() with GMEM_CONVERT_ALL instead. The call waits until every view
 * that began before has ended.
 *
 * Thread-safe, as gmem_vm_convert(). Since: 0.1.
 *
 * Return: 0, or -EINVAL, -ENOENT, -ENXIO, -EOPNOTSUPP, -EBUSY, -EDEADLK,
 * -ENOMEM or -ENOTRECOVERABLE as gmem_vm_convert(), or the errno of a listener that
 * refused.
 */
GMEM_API int gmem_vm_adopt_private(struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/* ----------------------------------------------------------------- exits -- */

/* Kinds of exits: struct gmem_exit.kind */
#define GMEM_EXIT_OTHER		0u /* not about guest memory: the VMM handles it */
#define GMEM_EXIT_FAULT		1u /* an access needs memory in @state, which is not there */
#define GMEM_EXIT_CONVERT	2u /* the guest requests a conversion, and needs an answer */
#define GMEM_EXIT_BAD_CONVERT	3u /* an invalid request for a conversion; needs an answer, too */
#define GMEM_EXIT_POISON	4u /* the hardware lost the memory there */
#define GMEM_EXIT_UNKNOWN_REASON	5u /* a fault for a reason this library does not know */
#define GMEM_EXIT_NO_ADDRESS	6u /* a fault for which KVM gives no address */

/**
 * struct gmem_exit - a vCPU's exit, decoded as far as it is about guest memory
 * @kind: GMEM_EXIT_*
 * @state: for GMEM_EXIT_FAULT, GMEM_EXIT_POISON and GMEM_EXIT_CONVERT the
 *	GMEM_STATE_* that the access or the guest needs; else 0
 * @gpa: start of the range. For faults rounded down to the page, because KVM may
 *	give a finer address; for GMEM_EXIT_BAD_CONVERT as the guest gave it
 * @size: bytes; for faults whole pages. 0: KVM gave no address
 * @page_size: for GMEM_EXIT_CONVERT the page size in bytes that the guest prefers;
 *	0: none that the interface knows
 * @unknown: for GMEM_EXIT_UNKNOWN_REASON and GMEM_EXIT_BAD_CONVERT the bits that
 *	this library does not know
 * @error: the negative errno of KVM_RUN, -EINVAL for GMEM_EXIT_BAD_CONVERT, else 0
 * @repeats: set by gmem_vcpu_handle_exit(): number of directly preceding exits
 *	about the same @gpa; else 0
 */
struct gmem_exit {
	uint32_t kind;
	uint32_t state;
	uint64_t gpa;
	uint64_t size;
	uint64_t page_size;
	uint64_t unknown;
	int32_t  error;
	uint32_t repeats;
};

/**
 * gmem_exit_decode() - decode what an exit of KVM_RUN says about guest memory
 * @run: the vCPU's kvm_run
 * @result: return value of ioctl(KVM_RUN)
 * @error: errno after that, positive; read only if @result is negative
 * @ret: the decoded exit
 *
 * This is a pure function: it makes no system call and has no state. KVM describes
 * a fault in kvm_run only if KVM_RUN failed with EFAULT or EHWPOISON and the exit
 * reason is KVM_EXIT_MEMORY_FAULT; otherwise the description there is an old one.
 * An access to memory whose host address is unmapped gives EFAULT without a
 * description. Before Linux 6.8, so did EHWPOISON for memory the hardware lost.
 *
 * A guest requests conversions with the hypercall KVM_HC_MAP_GPA_RANGE (x86
 * only), which exits if KVM_CAP_EXIT_HYPERCALL was enabled for it. The request
 * comes from the guest, so it is checked: a bad size or alignment, a range that
 * wraps, reserved bits and addresses that no processor has give
 * GMEM_EXIT_BAD_CONVERT, and gmem_last_error() says which. This function does not
 * know whether there is memory in the range. The request counts pages of 4096
 * bytes, whatever the host's page.
 *
 * Thread-safe. Source: KVM API, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_HYPERCALL.
 * Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument.
 */
GMEM_API int gmem_exit_decode(const struct kvm_run *run, int result, int error,
			      struct gmem_exit *ret);

/**
 * gmem_exit_reply() - answer a guest's request for a conversion
 * @run: the vCPU's kvm_run, unchanged since the exit
 * @vm_type: the type the VM was created with: KVM_CREATE_VM's argument
 * @error: 0 if the conversion is done, or the negative errno of its failure
 *
 * The guest gets the answer when the vCPU runs again, in the numbers of its own
 * ABI: 0, and negative EINVAL, EPERM, E2BIG, EFAULT, EOPNOTSUPP and EAGAIN. The
 * library replaces -EBUSY and -EINTR by EAGAIN, and every other errno by EINVAL.
 * For SNP and TDX guests (types 4 and 5) KVM translates the answer and takes only
 * 0 and *positive* EAGAIN and EINVAL: they get those, EINVAL for all that is
 * neither done nor to be tried again. With another answer KVM_RUN fails there.
 *
 * This is a pure function, as gmem_exit_decode().
 *
 * Thread-safe for different vCPUs. Source: KVM API, KVM_EXIT_HYPERCALL; KVM's
 * hypercalls.rst. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, an @error that is positive, or an exit
 * that is no such request.
 */
GMEM_API int gmem_exit_reply(struct kvm_run *run, uint64_t vm_type, int error);

/* ----------------------------------------------------------------- vCPUs -- */

/* Flags of struct gmem_vcpu_opts */
#define GMEM_VCPU_EXPLICIT	(1ull << 0) /* convert only on the guest's request, not on faults */

/**
 * struct gmem_vcpu_opts - how to handle a vCPU's exits
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_VCPU_*; unknown bits are -EINVAL
 * @discard: GMEM_DISCARD_*, as in struct gmem_convert_opts
 * @wait_ms: milliseconds to wait for one exit, whatever it takes, as in
 *	struct gmem_convert_opts
 * @max_stuck_faults: number of consecutive faults at one address that need no
 *	conversion, the last of which is -ELOOP; 0: 16
 * @max_repeats: number of consecutive exits about one address, whatever was done
 *	for them, after which the next one is -ELOOP; 0: no limit
 */
struct gmem_vcpu_opts {
	size_t   size;
	uint64_t flags;
	uint32_t discard;
	uint32_t wait_ms;
	uint32_t max_stuck_faults;
	uint32_t max_repeats;
};

/**
 * gmem_vcpu_new() - create the record of a vCPU, to handle its exits
 * @vm: handle
 * @vcpu_fd: vCPU fd, borrowed: keep it open until gmem_vcpu_free(); or -1 to do
 *	without gmem_vcpu_prefault()
 * @opts: NULL for defaults
 * @ret: the vCPU's record, yours to free with gmem_vcpu_free()
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or bad options, -ENOMEM, -E2BIG options
 * newer than the library.
 */
GMEM_API GMEM_CHECKED int gmem_vcpu_new(struct gmem_vm *vm, int vcpu_fd,
					const struct gmem_vcpu_opts *opts,
					struct gmem_vcpu **ret);

/**
 * gmem_vcpu_free() - free a vCPU's record
 * @vcpu: record, or NULL
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_vcpu_free(struct gmem_vcpu *vcpu);

/**
 * gmem_vcpu_handle_exit() - do what a vCPU's exit needs of guest memory
 * @vcpu: the vCPU's record
 * @run: its kvm_run
 * @result: return value of ioctl(KVM_RUN)
 * @error: errno after that, positive; read only if @result is negative
 * @ret: the decoded exit, filled in on failure, too; NULL if not wanted
 *
 * Call it after every KVM_RUN. A fault converts its page to the state that the
 * access needs. A request converts its range, and the guest gets an answer: an
 * error if the request is invalid, if its range has holes, or if a lease is in
 * the way. A request to make a range without any memory shared succeeds,
 * because such a range always is. A request for memory that cannot be converted
 * (backing host, mapped or shared) is refused with EOPNOTSUPP, also one to make
 * it shared. A fault there fails with -EOPNOTSUPP. The answer is one that the
 * VM's type takes, see gmem_exit_reply(). A VM's type is what the caller told
 * gmem_caps_new() or gmem_vm_new(). Otherwise the VM is taken for SNP or TDX if
 * it has private memory and the host offers one of them, which is wrong only
 * for a SW_PROTECTED VM (type 1, for testing) on such a host, and else for a VM
 * of another type.
 *
 * A guest decides how often it exits, but not how much an exit costs: each causes
 * at most one conversion of each existing page. With GMEM_DISCARD_NOW no guest
 * memory is doubled. A request of more than 1 GiB is checked in whole, and then
 * converted in pieces of up to 1 GiB, lowest first. Between two pieces, others who
 * wait for the range get their turn, and if immediate_exit of @run is set, the call
 * ends with -EINTR: call it again with the same arguments to go on. A piece that is
 * refused leaves those before it converted; a guest that asks again gets past them
 * at no cost. If a fault comes back although the memory has the state it needs,
 * something else is wrong: after max_stuck_faults of them the call fails with
 * -ELOOP. With repeats in @ret the VMM can stop earlier. gmem_vm_stats() has counts
 * of all of these.
 *
 * An exit because the vCPU's dirty ring is full is handled by reading all rings, if the
 * vCPU's is among those of gmem_vm_add_dirty_ring(). That never waits for a change of the layout.
 *
 * One thread at a time per object; different objects in parallel. Do not call it
 * between gmem_view_begin() and gmem_view_end() of the same thread. Source: KVM
 * API, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_HYPERCALL, KVM_EXIT_DIRTY_RING_FULL. Since: 0.1.
 *
 * Return: 1 the exit is handled, run the vCPU again; 0 it is not about guest
 * memory, so the VMM must handle it; or -EINVAL NULL argument, -ENOENT a
 * private access where there is no memory, -ENXIO one in the range of a device,
 * -ELOOP see above, -EHWPOISON the hardware lost the memory, -EFAULT a fault
 * for which KVM gives no address, -EPROTO a fault for an unknown reason,
 * -EACCES a fault that needs a conversion, with GMEM_VCPU_EXPLICIT, -ESTALE after
 * gmem_vm_free(), -EINTR see above, and every errno of gmem_vm_convert(), -EDEADLK
 * included. If the vCPU runs again after an error, a fault comes again; a request has
 * its answer, which after -EINTR is EAGAIN.
 */
GMEM_API int gmem_vcpu_handle_exit(struct gmem_vcpu *vcpu, struct kvm_run *run, int result,
				   int error, struct gmem_exit *ret);

/**
 * gmem_vcpu_prefault() - fault memory into the guest's page tables before it runs
 * @vcpu: record made with a vCPU fd
 * @gpa: start, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page
 * @ret_done: bytes done, counted from @gpa, also on failure; NULL if not wanted
 *
 * Allocates missing memory, private memory, too, and does not check whether it fits:
 * gmem_vm_populate() does, and can go first. After a failure, pages faulted in stay.
 * KVM locks the vCPU meanwhile: if it runs, this call waits.
 *
 * One thread at a time per object; different objects in parallel. Source:
 * KVM_PRE_FAULT_MEMORY. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, -EBADF the record has no vCPU fd, -EOPNOTSUPP
 * this VM does not support it (GMEM_CAP_PRE_FAULT), -ENOENT the range has a hole,
 * -EFAULT the memory's file is gone, its host address is not mapped, or it is
 * private without a guest_memfd, -EHWPOISON the hardware lost the memory, -ESTALE after
 * gmem_vm_free(), -EINTR signals kept arriving, or the kernel's own errno.
 */
GMEM_API int gmem_vcpu_prefault(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t size,
				uint64_t *ret_done);

/* ------------------------------------------------------------------ NUMA -- */

/* Nodes for pages when they are first touched: struct gmem_numa_opts.policy */
#define GMEM_NUMA_DEFAULT	0u /* the policy of the thread that touches the page */
#define GMEM_NUMA_BIND		1u /* these nodes only */
#define GMEM_NUMA_PREFERRED	2u /* these nodes, others if they have no memory left */
#define GMEM_NUMA_INTERLEAVE	3u /* these nodes in turn, page by page */

/* Flags of struct gmem_numa_opts */
#define GMEM_NUMA_SHARED_ONLY	(1ull << 0) /* no policy for private guest_memfds */

#define GMEM_NUMA_WORDS 16 /* 1024 nodes */

/**
 * struct gmem_numa_opts - a NUMA policy
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_NUMA_SHARED_ONLY; unknown bits are -EINVAL
 * @policy: GMEM_NUMA_*
 * @reserved: must be 0
 * @nodes: bit n % 64 of word n / 64 is node n; at least one node, none for
 *	GMEM_NUMA_DEFAULT
 */
struct gmem_numa_opts {
	size_t   size;
	uint64_t flags;
	uint32_t policy;
	uint32_t reserved;
	uint64_t nodes[GMEM_NUMA_WORDS];
};

/**
 * struct gmem_numa_pages - NUMA nodes of the pages of a range
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @on_node: the caller's array, filled with the number of pages on each node; or
 *	NULL
 * @nodes: entries in @on_node
 * @elsewhere: pages on nodes past the last of @on_node
 * @absent: pages that are not allocated
 * @unknown: pages that are allocated on a node that no call tells: those the host
 *	cannot reach
 */
struct gmem_numa_pages {
	size_t    size;
	uint64_t *on_node;
	size_t    nodes;
	uint64_t  elsewhere;
	uint64_t  absent;
	uint64_t  unknown;
};

/**
 * gmem_file_set_numa() - set the NUMA policy of a file
 * @file: file created with GMEM_CREATE_MMAP, shared or private
 * @offset: start in the file, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; must end inside the file
 * @opts: the policy
 *
 * The policy belongs to the file: it holds for every process, every mapping and
 * for guests. The pages of a guest_memfd never move, so call this before they are
 * touched. If a page of the range is on another node already, or on one that no
 * call tells, the call fails with -EBUSY; it checks this before it sets the policy
 * and afterwards. It also reads the policy back from the kernel.
 *
 * The call may map existing pages. It allocates none, except one that is freed at
 * the very moment when it is examined.
 *
 * Thread-safe. Source: mbind(2), get_mempolicy(2), move_pages(2), cachestat(2).
 * Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, policy or options, no node, or one this
 * process may not use, -EBUSY too late (if gmem_last_error() says so, the policy
 * is set nevertheless, and pages were allocated meanwhile), -EOPNOTSUPP the file
 * cannot be mapped (then set_mempolicy(2) of the thread that touches a page
 * decides), the kernel ignores the policy (GMEM_CAP_NUMA_POLICY), has no NUMA, or
 * has no cachestat(2) to find late pages, -E2BIG options newer than the library,
 * -ENOMEM, or the kernel's own errno.
 */
GMEM_API GMEM_CHECKED int gmem_file_set_numa(struct gmem_file *file, uint64_t offset,
					     uint64_t size, const struct gmem_numa_opts *opts);

/**
 * gmem_file_numa() - count the pages of a file by NUMA node
 * @file: as gmem_file_set_numa()
 * @offset: as gmem_file_set_numa()
 * @size: as gmem_file_set_numa()
 * @pages: set its size, on_node and nodes; receives the counts. After a failure
 *	on_node may have counts of a part of the range
 *
 * Thread-safe. Source: move_pages(2), mincore(2), cachestat(2). Since: 0.1.
 *
 * Return: 0, or as gmem_file_set_numa() without -EBUSY.
 */
GMEM_API int gmem_file_numa(struct gmem_file *file, uint64_t offset, uint64_t size,
			    struct gmem_numa_pages *pages);

/**
 * gmem_vm_set_numa() - set the NUMA policy of guest memory
 * @vm: handle
 * @gpa: start, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; all of it must be memory
 * @opts: the policy
 * @ret_done: bytes that have the policy, counted from @gpa, also on failure;
 *	NULL if not wanted
 *
 * The policy is set for the file or host memory of each region, and with private
 * backing for both sides unless GMEM_NUMA_SHARED_ONLY is given. All of the range
 * is checked before the first policy is set. Policies belong to the memory: a
 * region that is moved keeps them, and one that is rebound has those of its new
 * file.
 *
 * To map a guest's nodes to nodes of the host, call this for the memory of each
 * guest node, and populate afterwards.
 *
 * Thread-safe. Pages are looked at in pieces of 64 MiB; conversions and changes of the
 * layout there wait for one at most, and the layout may change between two. Source: as
 * gmem_file_set_numa(). Since: 0.1.
 *
 * Return: as gmem_file_set_numa(), and -ENOENT the range has a hole, -ENXIO part
 * of it is a device's, -EDEADLK a callback calls it for its own range.
 */
GMEM_API GMEM_CHECKED int gmem_vm_set_numa(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
					   const struct gmem_numa_opts *opts,
					   uint64_t *ret_done);

/**
 * gmem_vm_numa() - count the pages of guest memory by NUMA node
 * @vm: handle
 * @gpa: as gmem_vm_set_numa()
 * @size: as gmem_vm_set_numa()
 * @pages: as gmem_file_numa()
 *
 * Both sides of private backing are counted, so there can be more pages than the
 * range has. Pages of a private guest_memfd that cannot be mapped count as absent
 * or unknown.
 *
 * Thread-safe, in pieces as gmem_vm_set_numa(). Source: as gmem_file_numa().
 * Since: 0.1.
 *
 * Return: 0, or as gmem_vm_set_numa() without -EBUSY.
 */
GMEM_API int gmem_vm_numa(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			  struct gmem_numa_pages *pages);

/* -------------------------------------------------- populate and discard -- */

/**
 * struct gmem_footprint - memory that a range took before and after a call
 * @done: bytes of the range, or of all ranges, that were processed: populated, or given
 *	back to the host. Memory that is left out for its kind counts when populating, not
 *	when discarding.
 * @before: bytes that were allocated before
 * @after: bytes that were allocated afterwards
 * @counted: 1 if @before and @after are valid, 0 if they could not be counted
 * @reserved: 0
 *
 * Both counts come from the kernel, for the side the guest uses: pages allocated to a
 * file by any process, and pages of host memory that are mapped in this process, or in
 * the page cache of a file mapped shared; of a private mapping of a file, the pages that
 * are its own. Of hugetlb that is the part of each huge page that is in the range; of a
 * file of hugetlbfs that is mapped shared, the kernel tells which pages are mapped here,
 * and how many the file has in all (st_blocks of fstat(2)): counted is what must be in
 * the range by both, which is exact if the range is all of the file, and if the library
 * finds no fd of the file, what is mapped here. Pages that guests and others allocate or
 * free meanwhile are in them. Pages of a file that cannot be mapped are counted from
 * Linux 6.5 on.
 */
struct gmem_footprint {
	uint64_t done;
	uint64_t before;
	uint64_t after;
	uint32_t counted;
	uint32_t reserved;
};

/**
 * gmem_progress_fn - is told the progress of a long call
 * @data: progress_data of struct gmem_populate_opts
 * @done: bytes finished
 * @total: bytes in all
 *
 * The library calls it after each piece of 64 MiB or less, in the thread that
 * finished the piece, but never in two threads at once. Threads of the library's have 1 MiB
 * of stack. The callback must not call libgmem with the same VM.
 *
 * Return: 0 to go on; anything else cancels the call.
 */
typedef int (*gmem_progress_fn)(void *data, uint64_t done, uint64_t total);

/* Flags of struct gmem_populate_opts */
#define GMEM_POPULATE_RESERVE	(1ull << 0) /* allocate in files, without clearing or mapping */
#define GMEM_POPULATE_UNCHECKED	(1ull << 1) /* do not check whether the memory fits */
#define GMEM_POPULATE_ALL_KINDS	(1ull << 2) /* also memory that is left out for its kind */
#define GMEM_POPULATE_SHARED_SIDE	(1ull << 3) /* the shared side, whatever the state */
#define GMEM_POPULATE_PRIVATE_SIDE	(1ull << 4) /* the guest_memfd beside it */

/**
 * struct gmem_populate_opts - how to populate
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_POPULATE_*; unknown bits are -EINVAL
 * @workers: number of threads to use, with the calling one; 0 or 1: only the
 *	calling thread. At most 1024.
 * @reserved: must be 0
 * @progress: progress callback, NULL for none
 * @progress_data: passed to @progress
 *
 * GMEM_POPULATE_RESERVE allocates the pages of files, and leaves half or more of
 * the cost to the first access. The kernel has no such call for host memory, which
 * is populated as without the flag.
 *
 * GMEM_POPULATE_SHARED_SIDE and GMEM_POPULATE_PRIVATE_SIDE choose one of the two sides
 * of memory with GMEM_BACKING_PRIVATE, as before a conversion that is to be quick. Memory
 * that has only one, of every other way of backing or of a file with GMEM_CREATE_MMAP, is
 * -EOPNOTSUPP, and both flags together are -EINVAL. Listeners are told of the side that
 * the guest uses alone.
 */
struct gmem_populate_opts {
	size_t   size;
	uint64_t flags;
	uint32_t workers;
	uint32_t reserved;
	gmem_progress_fn progress;
	void    *progress_data;
};

/**
 * gmem_vm_populate() - allocate guest memory before it is touched
 * @vm: handle
 * @gpa: guest physical address, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page; may span regions, all of it
 *	must be memory. Some kinds are left out, see enum gmem_kind
 * @opts: NULL for defaults: in this thread, cleared and mapped
 * @ret: memory before and after, filled in on failure, too; NULL if not wanted
 *
 * Populates the side the guest uses; allocated pages stay as they are. Memory that is
 * mapped for reading only, your own or a file's (GMEM_REGION_MEMORY_FD), is populated
 * for reading if the region is read-only, and cannot be populated if it is not. With
 * more than one worker the call starts threads, which block all signals except those of
 * faults, and have ended when it returns; if the system refuses threads, fewer do the
 * work. If a NUMA policy takes memory from a single node (gmem_vm_set_numa()), the
 * workers move to processors of that node. The caller's thread handles signals
 * meanwhile, and they do not stop the call; @progress can.
 *
 * Running out of memory does not give an error: in a memory cgroup at its limit
 * the kernel kills the process, and on a full machine it kills other processes and
 * may panic, because guest_memfd pages belong to no process. So the library checks
 * before the first page and before each piece that the missing memory fits into
 * MemAvailable and, for each memory cgroup from the process's own upwards, into
 * its limit less its usage without inactive page cache (cgroups of version 1 and 2
 * under /sys/fs/cgroup). memory.high is a limit as memory.max is: above it, the
 * kernel puts the process to sleep again and again. The library cannot know how
 * much others take meanwhile. Swap does not count, because guest_memfd cannot use
 * it. GMEM_POPULATE_UNCHECKED leaves these checks out.
 *
 * Memory of hugetlb is compared with the huge pages of its size instead: those that are
 * free, less those reserved for other mappings, and those that nr_overcommit_hugepages
 * allows, and the limits of the hugetlb cgroups. A range that begins or ends inside a
 * huge page populates all of it. Pages that may be in a file of hugetlbfs without being
 * mapped here (see struct gmem_footprint) are taken to be there: where that is wrong
 * and no page is free, the kernel refuses, -EFAULT, after the pages before.
 *
 * Memory populated before a failure stays; @ret has the exact amount.
 *
 * Thread-safe; conversions and changes of the layout can run after each piece.
 * Source: madvise(2) with MADV_POPULATE_READ or MADV_POPULATE_WRITE (before Linux
 * 5.14 an access to each page), fallocate(2), /proc/meminfo,
 * /sys/kernel/mm/hugepages. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range or options, -ENOENT the range has a hole, -ENXIO
 * part of it is a device's, -EOPNOTSUPP all of it is left out for its kind: nothing
 * was populated; -ENOMEM the memory does not fit, or the kernel had none left,
 * -ECANCELED @progress stopped it, -EFAULT a page cannot be allocated, or its memory
 * is mapped without the permission or not at all, -EHWPOISON the hardware lost a
 * page (the sentence says which), -EDEADLK a callback calls it for its own range, or
 * with more than one worker, -E2BIG options newer than the library, or the kernel's
 * own errno.
 */
GMEM_API int gmem_vm_populate(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			      const struct gmem_populate_opts *opts,
			      struct gmem_footprint *ret);

/**
 * gmem_populate_new() - create a populate job for the caller's own threads
 * @vm: handle
 * @gpa: as gmem_vm_populate()
 * @size: as gmem_vm_populate()
 * @opts: as gmem_vm_populate(); workers is the number of threads expected
 * @ret: the job, yours to free with gmem_populate_free()
 *
 * Checks everything and populates nothing: gmem_populate_run() does. The library
 * starts no threads for a job.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: as gmem_vm_populate(); -EDEADLK only for the callback's own range.
 */
GMEM_API GMEM_CHECKED int gmem_populate_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
					    const struct gmem_populate_opts *opts,
					    struct gmem_populate **ret);

/**
 * gmem_populate_run() - work on a job until no piece is left to begin
 * @job: job
 *
 * Call it in any number of threads, at any time. Each thread begins in its own
 * part of the range. When the call returns, other threads may still be working on
 * their last piece.
 *
 * Thread-safe. Source: as gmem_vm_populate(). Since: 0.1.
 *
 * Return: as gmem_populate_new(), -ECANCELED also after gmem_populate_cancel(), -ESTALE
 * after gmem_vm_free(). After a failure in one thread, -EDEADLK included, all calls
 * return its errno.
 */
GMEM_API int gmem_populate_run(struct gmem_populate *job);

/**
 * gmem_populate_cancel() - make all threads stop after their present piece
 * @job: job, or NULL
 *
 * Thread-safe, and may be called in a signal handler. Since: 0.1.
 */
GMEM_API void gmem_populate_cancel(struct gmem_populate *job);

/**
 * gmem_populate_result() - get the memory of a job before and after
 * @job: job
 * @ret: filled in
 *
 * Thread-safe. Source: cachestat(2), mincore(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument.
 */
GMEM_API int gmem_populate_result(struct gmem_populate *job, struct gmem_footprint *ret);

/**
 * gmem_populate_free() - free a job
 * @job: job that no thread runs any more, or NULL
 *
 * Populated memory stays.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_populate_free(struct gmem_populate *job);

/* Flags of struct gmem_discard_opts */
#define GMEM_DISCARD_INWARD	(1ull << 0) /* any alignment: discard the whole pages inside */
#define GMEM_DISCARD_ALL_KINDS	(1ull << 1) /* also memory that is left out for its kind */
#define GMEM_DISCARD_NOT_ZERO	(1ull << 2) /* also what does not read as zero afterwards */
#define GMEM_DISCARD_SHARED_SIDE	(1ull << 3) /* the shared side, whatever the state */
#define GMEM_DISCARD_PRIVATE_SIDE	(1ull << 4) /* the guest_memfd beside it */

/**
 * struct gmem_discard_opts - how to discard
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_DISCARD_*; unknown bits are -EINVAL
 * @wait_ms: milliseconds to wait in all, for leases and earlier work; 0: fail at once
 *	if there is a lease. See "Waiting" at struct gmem_vm_opts.
 * @reserved: must be 0
 *
 * GMEM_DISCARD_SHARED_SIDE and GMEM_DISCARD_PRIVATE_SIDE choose one of the two sides of
 * memory with GMEM_BACKING_PRIVATE, used by the guest or not: the side that the guest
 * does not use is what GMEM_DISCARD_NEVER left, or what was populated ahead. Memory that
 * has only one side, of every other way of backing or of a file with GMEM_CREATE_MMAP, is
 * -EOPNOTSUPP: so a list of all RAM never frees what it did not mean. Both flags together
 * are -EINVAL. A lease prevents both. Listeners are told of the side that the guest uses
 * alone.
 */
struct gmem_discard_opts {
	size_t   size;
	uint64_t flags;
	uint32_t wait_ms;
	uint32_t reserved;
};

/**
 * gmem_vm_discard() - give guest memory back to the host
 * @vm: handle
 * @gpa: guest physical address, a multiple of the page, below 2^63
 * @size: bytes, non-zero, a multiple of the page; may span regions, all of it
 *	must be memory
 * @opts: NULL for defaults: do not wait for leases
 * @ret: memory before and after, filled in on failure, too; NULL if not wanted,
 *	which saves the counting
 *
 * For balloons and free page reporting. The call frees the side the guest uses,
 * and guest and host read zeros there afterwards. Only RAM is freed, and the rest of
 * the range stays as it is, unless GMEM_DISCARD_ALL_KINDS asks for it (enum gmem_kind).
 *
 * Some memory would not read as zero: a private mapping of a file shows the file again,
 * and userfaultfd, registered for missing pages, asks its handler again. It is not
 * freed, -EOPNOTSUPP, unless GMEM_DISCARD_NOT_ZERO says that the guest does not care:
 * what a page holds afterwards is then the file's or the handler's to say
 * (UFFD_EVENT_REMOVE tells the handler). That memory is userfaultfd's is found out by
 * one page of each call: it is made absent, so that its contents are the handler's, and
 * the rest of the range is not touched. That takes longer than to discard a page of host
 * memory does, so give a list where you can (gmem_vm_discard_list()); calls with the flag
 * do not try.
 *
 * Where /proc is out of reach, as after chroot(2), what is mapped is found out by what
 * the kernel refuses. Private anonymous memory and shared memory that is not locked are
 * freed as ever; locked memory and anonymous memory of hugetlb are -EOPNOTSUPP without
 * GMEM_DISCARD_NOT_ZERO. That memory is userfaultfd's cannot be found out there: it is
 * freed, counts as done, and its handler is asked again. Let such a VMM have /proc, or
 * a handler that answers UFFD_EVENT_REMOVE with zeros. If /proc cannot be read only for
 * now, for want of a file descriptor, nothing is guessed: -EMFILE, -ENFILE or -ENOMEM,
 * unless GMEM_DISCARD_NOT_ZERO.
 *
 * Only whole pages of the memory can be freed. A range that begins or ends inside a
 * huge page of hugetlb is -EINVAL; with GMEM_DISCARD_INWARD that huge page stays, and
 * does not count as done. Memory of a memfd sealed with F_SEAL_WRITE or
 * F_SEAL_FUTURE_WRITE cannot be freed: -EPERM, and the sentence names the seal. Locked
 * memory (mlock(2)) is freed; if it is shared, through its file, which the library must
 * find: with GMEM_REGION_MEMORY_FD, among the file descriptors of the process, or with
 * CAP_CHECKPOINT_RESTORE in /proc/self/map_files; else it is -EOPNOTSUPP, and -EMFILE,
 * -ENFILE or -ENOMEM if a limit was in the way, whatever the flags.
 *
 * The range must not be in use: the guest loses its contents, and I/O that began
 * before goes to pages that nobody sees any more. A lease prevents the discard, also
 * one on the same memory at another guest address.
 *
 * Thread-safe; changes of the layout and conversions of the range wait, for one piece
 * of 64 MiB at most. Source: madvise(2) with MADV_DONTNEED, MADV_DONTNEED_LOCKED (Linux
 * 5.18), MADV_FREE and MADV_REMOVE, fallocate(2) with FALLOC_FL_PUNCH_HOLE,
 * PROCMAP_QUERY (Linux 6.11), before that /proc/self/maps; /proc/self/mem. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range or options, or part of a huge page, -ENOENT the range
 * has a hole, -ENXIO part of it is a device's, -EOPNOTSUPP all of it is left out for
 * its kind, -EBUSY somebody holds a lease on it, -ENOMEM, -E2BIG options newer than the
 * library: nothing was freed; or -EBUSY, -ENOENT or -ENXIO if a lease was taken or the
 * layout changed meanwhile, -EOPNOTSUPP memory that would not read as zero or is
 * locked, -EPERM a seal, -EFAULT nothing is mapped there, -EMFILE, -ENFILE, -EDEADLK a
 * callback calls it for its own range, or the kernel's own errno: @ret says how much
 * was freed.
 */
GMEM_API int gmem_vm_discard(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			     const struct gmem_discard_opts *opts, struct gmem_footprint *ret);

/**
 * gmem_vm_discard_list() - give many ranges back to the host
 * @vm: handle
 * @ranges: ranges as gmem_vm_discard(), in any order; they may overlap
 * @count: entries in @ranges; 0 does nothing
 * @opts: as gmem_vm_discard()
 * @ret: as gmem_vm_discard(), for all of them
 *
 * Adjacent ranges are freed together, which for single pages takes a third of the time.
 * With GMEM_DISCARD_INWARD, pages of the guest that are smaller than the host's, or
 * than a huge page of hugetlb, are freed where adjacent ones fill it; the others stay,
 * and do not count as done.
 *
 * Everything is checked before the first range is freed, in the order of addresses.
 * Ranges of memory that is left out for its kind stay as they are; only if there is no
 * other memory in any of the ranges, the call is -EOPNOTSUPP. If somebody takes a lease
 * after the check, the call ends with -EBUSY, and the ranges below the lease are freed.
 *
 * Thread-safe, as gmem_vm_discard(). Since: 0.1.
 *
 * Return: as gmem_vm_discard().
 */
GMEM_API int gmem_vm_discard_list(struct gmem_vm *vm, const struct gmem_gpa_range *ranges,
				  size_t count, const struct gmem_discard_opts *opts,
				  struct gmem_footprint *ret);

/**
 * gmem_vm_discard_pfns() - give the pages of a balloon back to the host
 * @vm: handle
 * @pfns: numbers of guest pages of 4 KiB, in any order, little-endian as virtio-balloon
 *	has them in its queues; the same number may come several times
 * @count: entries in @pfns; 0 does nothing
 * @opts: as gmem_vm_discard(); GMEM_DISCARD_INWARD is implied
 * @ret: as gmem_vm_discard(), for all of them
 *
 * As gmem_vm_discard_list(): adjacent pages are freed together, and pages of the host that
 * are larger, or huge, where all of one is in the list. Pages of it that come in different
 * lists are not joined: such a page stays, and does not count as done.
 *
 * Every number is a guest address below 16 TiB, and checked before the first page is
 * freed: a guest that names a page without memory, -ENOENT, or of a device, -ENXIO, gets
 * nothing freed. Memory that is left out for its kind stays as it is.
 *
 * Thread-safe, as gmem_vm_discard(). Since: 0.1.
 *
 * Return: as gmem_vm_discard_list().
 */
GMEM_API int gmem_vm_discard_pfns(struct gmem_vm *vm, const uint32_t *pfns, size_t count,
				  const struct gmem_discard_opts *opts,
				  struct gmem_footprint *ret);

/* ------------------------------------------------------------ statistics -- */

/* Flags of struct gmem_stats */
#define GMEM_STATS_RESIDENT	(1ull << 0) /* count resident memory, too */

/**
 * struct gmem_stats - sizes and counters of guest memory
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_STATS_*, set by the caller; unknown bits are -EINVAL
 * @bytes_shared: bytes of shared memory. With @bytes_private, all memory that is counted
 *	(enum gmem_kind)
 * @bytes_private: bytes of private memory
 * @resident_shared: with GMEM_STATS_RESIDENT: bytes allocated on the shared side
 * @resident_private: the same for the private side. A private file with
 *	GMEM_CREATE_MMAP has one memory for both sides and counts here; one that is
 *	converted in place counts as shared side
 * @doubled: bytes allocated on both sides at the same address
 * @made_private: bytes that became private, with those of removed regions. Less
 *	@made_shared this is @bytes_private, unless a region that is private in
 *	part was split
 * @made_shared: bytes that became shared again, by removal, too
 * @conversions: number of conversions that changed something; one that spans
 *	regions counts for each of them, and once for the VM
 * @convert_ioctls: number of ioctls for conversions, with those that failed or that
 *	undid others; one that spans regions counts for the first of them
 * @discards: number of ranges that were given back to the host
 * @discarded: bytes of these ranges
 * @faults_private: number of vCPU exits, counted by gmem_vcpu_handle_exit() like
 *	all members below: accesses that needed private memory, and converted it
 * @faults_shared: accesses that needed shared memory, and converted it
 * @faults_late: accesses that needed nothing any more when the exit was handled,
 *	because another vCPU was faster
 * @faults_stuck: accesses that reached max_stuck_faults of struct gmem_vcpu_opts
 * @faults_hole: accesses to private memory where there is no memory
 * @faults_refused: accesses that needed a conversion that was refused: somebody
 *	holds a lease, the memory cannot be converted, or GMEM_VCPU_EXPLICIT
 * @faults_poison: accesses to memory that the hardware lost
 * @faults_unknown_reason: faults for reasons this library does not know
 * @faults_no_address: faults for which KVM gave no address
 * @requests: requests of guests for conversions that were done
 * @requests_refused: requests of guests that were refused, for invalid ranges,
 *	holes or leases
 * @bytes_rom: bytes of kind GMEM_KIND_ROM, which are in @bytes_shared and @bytes_private
 * @bytes_device: bytes of kind GMEM_KIND_DEVICE, which are in neither
 * @bytes_external: bytes of kind GMEM_KIND_EXTERNAL, which are in neither
 *
 * The counters of exits are disjoint: each exit about memory is in one of them.
 * A region counts the exits at its addresses; invalid requests have no region.
 */
struct gmem_stats {
	size_t   size;
	uint64_t flags;
	uint64_t bytes_shared;
	uint64_t bytes_private;
	uint64_t resident_shared;
	uint64_t resident_private;
	uint64_t doubled;
	uint64_t made_private;
	uint64_t made_shared;
	uint64_t conversions;
	uint64_t convert_ioctls;
	uint64_t discards;
	uint64_t discarded;
	uint64_t faults_private;
	uint64_t faults_shared;
	uint64_t faults_late;
	uint64_t faults_stuck;
	uint64_t faults_hole;
	uint64_t faults_refused;
	uint64_t faults_poison;
	uint64_t faults_unknown_reason;
	uint64_t faults_no_address;
	uint64_t requests;
	uint64_t requests_refused;
	uint64_t bytes_rom;
	uint64_t bytes_device;
	uint64_t bytes_external;
};

/**
 * gmem_vm_stats() - statistics of a VM's memory
 * @vm: handle
 * @stats: set its size and flags; receives the numbers
 *
 * The library always counts, without locks. Each counter is exact, but two of them may
 * be of different moments while other threads work. GMEM_STATS_RESIDENT examines all
 * memory, without touching it, in pieces of 64 MiB; conversions of a piece wait
 * meanwhile. Host memory counts as in struct gmem_footprint; where nothing is mapped at
 * its host address, nothing is resident.
 *
 * Thread-safe. Source: mincore(2), cachestat(2), PROCMAP_QUERY or /proc/self/maps where
 * part of the memory is not mapped, hugetlb, or a private mapping of a file, for these
 * fstat(2), and /proc/self/pagemap. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or bad flags, -EOPNOTSUPP the kernel has no
 * cachestat(2) to count private memory, -EFAULT part of the memory is not mapped, and
 * /proc does not say which, -EMFILE, -ENFILE, -ENOMEM what is mapped cannot be asked
 * for now, -EDEADLK a callback that has memory to itself calls it with
 * GMEM_STATS_RESIDENT, -E2BIG @stats is newer than the library and what that does not
 * know is not 0, or the kernel's own errno.
 */
GMEM_API int gmem_vm_stats(struct gmem_vm *vm, struct gmem_stats *stats);

/**
 * gmem_region_stats() - statistics of a region
 * @region: region
 * @stats: as gmem_vm_stats()
 *
 * Counters begin when the region is added; those of the upper part of a split
 * begin at 0.
 *
 * Thread-safe. Source: as gmem_vm_stats(). Since: 0.1.
 *
 * Return: as gmem_vm_stats(); -EDEADLK only for the callback's own range.
 */
GMEM_API int gmem_region_stats(struct gmem_region *region, struct gmem_stats *stats);

/* ----------------------------------------------------------------- dumps -- */

/* Flags of struct gmem_dump_opts */
#define GMEM_DUMP_HVA		(1ull << 0) /* write host addresses, too */
#define GMEM_DUMP_LAYOUT_ONLY	(1ull << 1) /* write nothing about allocated memory */

/**
 * struct gmem_dump_opts - how to dump a VM's memory
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_DUMP_*; unknown bits are -EINVAL. Without GMEM_DUMP_HVA a dump
 *	has no host addresses, so you can give it to others.
 * @name: name of the VM in the dump, any bytes; NULL: none
 * @cell: granularity of the counts of allocated memory: bytes, a power of two not
 *	below the page; 0: such that all memory has about 500 cells
 */
struct gmem_dump_opts {
	size_t   size;
	uint64_t flags;
	const char *name;
	uint64_t cell;
};

/**
 * gmem_vm_dump() - write a description of a VM's memory, as JSON
 * @vm: handle
 * @fd: file, pipe or socket to write to; borrowed
 * @opts: NULL for defaults
 *
 * gmem-dump(5) describes the format; gmem-show(1) makes pictures of it. The
 * regions are those of one moment. Their allocated memory is counted cell by
 * cell while the guest and other threads go on; a thread that converts memory
 * or changes the layout waits for 64 MiB at most. The call holds no lock while
 * it writes, however slow the reader is. It allocates no guest memory, and for
 * itself about 100 bytes for each region.
 *
 * Signals do not stop it. If the reader has gone, the call fails with -EPIPE and
 * raises no SIGPIPE; past RLIMIT_FSIZE with -EFBIG, without SIGXFSZ; if a
 * non-blocking @fd is full, with -EAGAIN. After a failure the output is incomplete,
 * and readers can tell.
 *
 * Thread-safe. Source: cachestat(2), mincore(2), move_pages(2), write(2),
 * getrlimit(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or bad options, -E2BIG options newer than
 * the library, -EDEADLK called from a listener's callback, -ENOMEM, -EBADF @fd
 * is no open fd, or the errno of write(2). Counts that the kernel does not give
 * are left out, which is no failure.
 */
GMEM_API int gmem_vm_dump(struct gmem_vm *vm, int fd, const struct gmem_dump_opts *opts);

/**
 * gmem_vm_serve_dump() - give a dump to a program that connects to a socket of yours
 * @vm: handle
 * @listening_fd: stream socket that listens, O_NONBLOCK, borrowed; of any family
 * @opts: as gmem_vm_dump(); NULL for defaults
 * @wait_ms: milliseconds that the call may wait for a slow reader, in all; 0: none
 *
 * Accepts one connection, writes a dump to it, and closes it. `gmem-show --socket PATH
 * --watch 1` is such a reader. Call it whenever poll(2) says that @listening_fd is
 * readable, in your event loop or in a thread that you made for it; if nobody is
 * there, it returns at once.
 *
 * Who may connect is for you to say, by the permissions of the socket's directory, or
 * SO_PEERCRED in a proxy of yours: a reader learns where the guest's memory is and how
 * much is in use, and each dump costs the time of gmem_vm_dump(). Nothing is read from
 * the connection. A reader that does not read delays the calling thread by @wait_ms and is
 * cut off then, with -EAGAIN. A socket takes about 200 KiB without a reader. With cells
 * of the default size a dump has up to 90 KiB, 600 bytes for each region, 60 bytes and the
 * holder's name for each lease, and 12 KiB for each NUMA node but the first. vCPUs never
 * wait for a reader: no lock is held while one is waited for. One that goes away raises
 * no SIGPIPE.
 *
 * Failures of single readers are no failures of the VM, and are not logged. After -EMFILE,
 * -ENFILE or -ENOMEM the connection still waits, and poll(2) says so at once: try again
 * a second later.
 *
 * Thread-safe. Source: accept4(2), poll(2), and as gmem_vm_dump(). Since: 0.1.
 *
 * Return: 1 a dump was given, 0 nobody wants one, or -EAGAIN the reader was too slow,
 * -EPIPE or -ECONNRESET it has gone, -EINVAL NULL argument, bad options, or
 * @listening_fd blocks or does not listen, -EOPNOTSUPP it is a socket that never does, such
 * as one of datagrams, -ENOTSOCK it is no socket, -EBADF it is not open, -EMFILE, -ENFILE,
 * and the errors of gmem_vm_dump().
 */
GMEM_API int gmem_vm_serve_dump(struct gmem_vm *vm, int listening_fd,
				const struct gmem_dump_opts *opts, uint32_t wait_ms);

/* ----------------------------------------------------------- dirty memory -- */

/*
 * A tracker (struct gmem_dirty) says which pages of a VM's memory changed since it was asked
 * last. To ask is to collect: gmem_dirty_collect(). It knows of the writes of
 *
 *   the guest, from KVM's dirty logs or from the dirty rings of the vCPUs
 *   this library: through views, compare-exchange included, and by loads and restores. Memory
 *	that is discarded or converted, and memory that comes or moves in the layout, counts as
 *	written.
 *   peers of an export, in whose processes the library marks what they write through views
 *   you, and of devices and the kernel, such as VFIO, vhost or read(2), if you say so with
 *	gmem_view_mark_dirty()
 *
 * No change is missed. A write that was complete when gmem_dirty_collect() was called is in what
 * it collects, or in what an earlier call did. A write that was under way is in this one or in
 * the next. Trackers of one VM take nothing from each other.
 *
 * Some pages are reported though their contents are what they were:
 *
 *   pages that were written with what they held, and pages that a call was to change when it
 *	failed
 *   pages that were written after they were collected and before you read them: they come again
 *   all pages of a region that was added, moved or rebound; with dirty rings, also of one that
 *	was split
 *   all pages between the holes that gmem_file_punch() made in a file
 *   all pages that a peer may write, each time as long as it does not mark, and once more when
 *	it ends: see gmem_peer_add()
 *   all that the guest wrote, each time, if KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled while
 *	there is a tracker, until there is none: enable it before
 *   all pages, once after 2^32 collections
 *
 * Not in it are memory of kind GMEM_KIND_DEVICE and ranges of devices; what a guest or a view
 * writes through another handle, such as that of address space 1, which has trackers of its own;
 * what others write and nobody marks, such as a child of fork(2) through the views it has from its
 * parent; and what a peer's process writes after gmem_peer_remove(), or without marking it,
 * because it is hostile, or was forked from the importing one before that began to mark. A page
 * with two guest addresses is reported at the one that it was written through.
 *
 * Pages are the host's. While there is no tracker, nothing is marked and no path is slower. The
 * marks of all trackers together take 4 bytes for each page of the memory that is written.
 */

/* Flags of struct gmem_dirty_opts */
#define GMEM_DIRTY_FROM_NOW	(1ull << 0) /* begin with nothing; otherwise with all memory */
#define GMEM_DIRTY_VCPUS_STOPPED (1ull << 1) /* memslots may be replaced: no vCPU runs meanwhile */
#define GMEM_DIRTY_ALLOW_UNLOGGED (1ull << 2) /* memory without a log counts as changed each time */
#define GMEM_DIRTY_RINGS	(1ull << 3) /* the dirty rings of all vCPUs are read, or fed */

/**
 * struct gmem_dirty_opts - how to track
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_DIRTY_* as defined above; unknown bits are -EINVAL
 *
 * KVM logs what the guest writes to memory with backing host or mapped. Of the others:
 *
 *	shared: with GMEM_DIRTY_VCPUS_STOPPED, the first such tracker replaces the memslots by
 *	ones of the mapping of the same pages, which have a log: all of the VM's, or none. No vCPU
 *	may run until the call returns. Addresses, views, leases and peers stay, and so does what
 *	gmem_region_backing() says. Memory that is added while there is such a tracker gets
 *	such a memslot, too. gmem_vm_bind_shared() goes back.
 *	private, in-place: there is no log. With GMEM_DIRTY_ALLOW_UNLOGGED, what is shared of it
 *	counts as changed each time. What is private can be neither known nor read.
 *	gmem_dirty_next() tells both apart from the rest. Without GMEM_DIRTY_VCPUS_STOPPED the flag
 *	does the same for shared memory.
 *
 * A tracker that was made without the flag that memory needs also keeps changes of the layout
 * from adding such memory: -EOPNOTSUPP.
 *
 * In a VM with dirty rings (GMEM_CAP_DIRTY_LOG) the library cannot know whether it has the rings
 * of all vCPUs, and takes your word for it, GMEM_DIRTY_RINGS. Without the flag gmem_dirty_new()
 * is refused, and so is gmem_dirty_collect() if the rings were enabled after that. Give each
 * ring to gmem_vm_add_dirty_ring(), or read the rings yourself and call
 * gmem_vm_mark_slot_dirty() for each entry before gmem_dirty_collect().
 */
struct gmem_dirty_opts {
	size_t   size;
	uint64_t flags;
};

/**
 * gmem_dirty_new() - begin to track which pages change
 * @vm: handle
 * @opts: NULL for defaults
 * @ret: the tracker, yours to free with gmem_dirty_free()
 *
 * The first gmem_dirty_collect() collects all memory, or with GMEM_DIRTY_FROM_NOW what
 * changes after this call has returned.
 *
 * With the first tracker of a VM the library begins to mark what it writes, and KVM to log what
 * the guest writes. The call waits for views that began before, as a change of the layout does;
 * later changes of the layout turn on the log of what they add.
 *
 * gmem_region_set_dirty_log() and gmem_region_get_dirty_log() may be used beside trackers: neither
 * loses bits to the other. Do not read KVM's log yourself.
 *
 * Thread-safe. Do not call it between gmem_view_begin() and gmem_view_end() of the same
 * thread. Source: KVM_SET_USER_MEMORY_REGION, KVM_MEM_LOG_DIRTY_PAGES, membarrier(2).
 * Since: 0.1.
 *
 * Return: 0, or -EOPNOTSUPP memory of the VM has no log, or it has dirty rings, and @opts
 * does not allow it, -EINVAL NULL argument or bad options, -E2BIG options newer than the
 * library, -ENOMEM, -EBUSY a change of the layout, or a view, has not ended within wait_ms of
 * struct gmem_vm_opts, -EDEADLK a callback calls it, -ENOTRECOVERABLE a region has lost its
 * memslot, or KVM's own errno: nothing changed.
 */
GMEM_API GMEM_CHECKED int gmem_dirty_new(struct gmem_vm *vm, const struct gmem_dirty_opts *opts,
					 struct gmem_dirty **ret);

/**
 * gmem_dirty_free() - end a tracker
 * @dirty: tracker, or NULL
 *
 * With the last tracker of a VM, the logs end that trackers began. Memslots that were replaced
 * stay until gmem_vm_bind_shared(). A tracker may be freed after its VM. The call waits for views
 * that began before, and for a change of the layout, as long as they last.
 *
 * One thread at a time per object; different objects in parallel. Not between
 * gmem_view_begin() and gmem_view_end() of the same thread, nor in a callback, nor
 * while a transfer or a migration uses it. Since: 0.1.
 */
GMEM_API void gmem_dirty_free(struct gmem_dirty *dirty);

/**
 * gmem_vm_bind_shared() - bind memory to its guest_memfds again after it was tracked
 * @vm: handle
 * @ret_ns: nanoseconds that it took; 0: no memslot had been replaced; NULL if not wanted
 *
 * Undoes what gmem_dirty_new() did with GMEM_DIRTY_VCPUS_STOPPED, for all regions or for
 * none. No vCPU may run until it returns.
 *
 * Thread-safe. Source: KVM_SET_USER_MEMORY_REGION2. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -EBUSY there is a tracker, or a change of the layout
 * has not ended within wait_ms of struct gmem_vm_opts, -EDEADLK a callback calls it, -ENOMEM
 * there is no memory to note the regions, or KVM's own errno: nothing changed; -ENOTRECOVERABLE
 * KVM refused to undo.
 */
GMEM_API int gmem_vm_bind_shared(struct gmem_vm *vm, uint64_t *ret_ns);

/**
 * struct gmem_dirty_info - what was collected, in sums
 * @size: sizeof this struct, set by the caller; GMEM_OPTS() fills it in
 * @bytes: bytes of the pages that changed
 * @unlogged_bytes: part of @bytes that has no log, and counts as changed each time
 * @private_bytes: bytes that are private, of which it is not known what changed; not in @bytes
 * @memory_bytes: bytes of all memory that is tracked, private or not
 * @rounds: successful calls of gmem_dirty_collect(), less those put back
 * @ns: nanoseconds from the collection before, or from gmem_dirty_new(), to the last one; of
 *	gmem_dirty_peek(): from the last one to now
 * @stopped_ns: nanoseconds for which vCPUs had to be stopped, in gmem_dirty_new() with
 *	GMEM_DIRTY_VCPUS_STOPPED; 0: no memslot was replaced
 */
struct gmem_dirty_info {
	size_t   size;
	uint64_t bytes;
	uint64_t unlogged_bytes;
	uint64_t private_bytes;
	uint64_t memory_bytes;
	uint64_t rounds;
	uint64_t ns;
	uint64_t stopped_ns;
};

/**
 * gmem_dirty_collect() - find out what changed since the last time
 * @dirty: tracker
 * @ret: set its size; receives the sums; NULL if not wanted: counting takes time, too
 *
 * gmem_dirty_next() and gmem_dirty_get_bitmap() tell the pages, until the next collection. Read
 * what is in a page after this call, not before. After a failure nothing is lost, and what was
 * collected before is still told.
 *
 * One thread at a time per object; different objects in parallel. It waits for a change of
 * the layout, but not for views. Source: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG,
 * KVM_RESET_DIRTY_RINGS, membarrier(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, or @ret is too small, -ESTALE the VM's handle was
 * freed, -EBUSY a change of the layout has not ended within wait_ms of struct gmem_vm_opts,
 * -EDEADLK a callback calls it, -ENOMEM there is no memory to read a log into, -EOPNOTSUPP dirty
 * rings were enabled after the tracker was made without GMEM_DIRTY_RINGS, or KVM's own errno.
 */
GMEM_API int gmem_dirty_collect(struct gmem_dirty *dirty, struct gmem_dirty_info *ret);

/**
 * gmem_dirty_peek() - what gmem_dirty_collect() would find now
 * @dirty: tracker
 * @ret: set its size; receives the sums
 *
 * Collects nothing: all of it is still to be collected.
 *
 * One thread at a time per object; different objects in parallel. Source: as
 * gmem_dirty_collect(). Since: 0.1.
 *
 * Return: as gmem_dirty_collect().
 */
GMEM_API int gmem_dirty_peek(struct gmem_dirty *dirty, struct gmem_dirty_info *ret);

/**
 * gmem_dirty_put_back() - have the next call collect once more what the last one did
 * @dirty: tracker
 *
 * For a program that could not use what was collected. Only the last collection can be put
 * back, once.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -EALREADY nothing was collected since the last
 * gmem_dirty_put_back(), or at all.
 */
GMEM_API int gmem_dirty_put_back(struct gmem_dirty *dirty);

/* Flags of struct gmem_dirty_range */
#define GMEM_DIRTY_RANGE_UNLOGGED (1u << 0) /* it has no log, and counts each time */
#define GMEM_DIRTY_RANGE_PRIVATE (1u << 1) /* it is private: whether it changed is not known */

/**
 * struct gmem_dirty_range - memory that changed
 * @gpa: guest physical address, a multiple of the page
 * @size: bytes, a multiple of the page; within one region
 * @flags: GMEM_DIRTY_RANGE_*
 * @reserved: 0
 */
struct gmem_dirty_range {
	uint64_t gpa;
	uint64_t size;
	uint32_t flags;
	uint32_t reserved;
};

/**
 * gmem_dirty_next() - first range at or behind an address that was collected
 * @dirty: tracker
 * @gpa: guest physical address, a multiple of the page: 0 for the first range, then the end of
 *	the one before
 * @ret: the range, which begins at @gpa or behind it; untouched on failure
 *
 * What was private when it was collected, and is shared now, is told as changed. Pages that
 * changed since may be told, too.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -ENOENT there is none, or nothing was collected yet, -EINVAL NULL argument, or
 * bad @gpa, -ESTALE the VM's handle was freed.
 */
GMEM_API int gmem_dirty_next(struct gmem_dirty *dirty, uint64_t gpa,
			     struct gmem_dirty_range *ret);

/**
 * gmem_dirty_get_bitmap() - what was collected of a range, as KVM_GET_DIRTY_LOG has it
 * @dirty: tracker
 * @gpa: guest physical address, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page
 * @bitmap: receives a bit for each page, the first in the lowest bit of the first word
 * @words: 64-bit words in @bitmap: enough for all pages
 *
 * Bits of pages that are private, and of addresses without memory, are 0.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, a bad range or too few words, -ENOENT nothing was
 * collected yet, -ESTALE the VM's handle was freed.
 */
GMEM_API int gmem_dirty_get_bitmap(struct gmem_dirty *dirty, uint64_t gpa, uint64_t size,
				   uint64_t *bitmap, size_t words);

/**
 * gmem_dirty_set_parent() - the image that has all that a tracker has collected so far
 * @dirty: tracker
 * @id: identity of the image, as in struct gmem_transfer_result or struct
 *	gmem_image_summary; 0: there is none, and the next save is of all memory
 * @generation: its generation, likewise
 *
 * gmem_vm_save() with a tracker sets the image that it has saved. The call is for a VM whose
 * memory was restored from an image, and a tracker that was made with GMEM_DIRTY_FROM_NOW before
 * the VM ran. The next save then writes what differs from that image.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, or a @generation without @id.
 */
GMEM_API int gmem_dirty_set_parent(struct gmem_dirty *dirty, uint64_t id, uint64_t generation);

/**
 * gmem_view_mark_dirty() - say that memory was written by other means than the library's
 * @view: view of a VM or of an import
 * @gpa: guest physical address, any alignment
 * @size: bytes; 0 does nothing; must not wrap
 *
 * Call it after the write, never before: for every write to what gmem_view_hva(),
 * gmem_view_iovec() or gmem_region_hva() gave, and for every range that a device, another part
 * of the kernel or a child of fork(2) has written. A child of fork(2) that has the view of a VM
 * marks nothing that counts. Where regions may move meanwhile, write and mark between one
 * gmem_view_begin() and gmem_view_end(). Without a tracker it does next to nothing. Addresses
 * without memory are left out.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, or the range wraps, -ESTALE the VM's handle was freed,
 * or the import.
 */
GMEM_API int gmem_view_mark_dirty(struct gmem_view *view, uint64_t gpa, uint64_t size);

/**
 * gmem_vm_add_dirty_ring() - have the library read the dirty ring of a vCPU
 * @vm: handle
 * @vcpu_fd: fd of a vCPU of this VM, which the library cannot check; borrowed: keep it open until
 *	gmem_vm_remove_dirty_ring()
 * @bytes: size of the ring: what KVM_CAP_DIRTY_LOG_RING was enabled with
 *
 * gmem_dirty_collect() and gmem_dirty_peek() read all rings, and so does
 * gmem_vcpu_handle_exit() when KVM_RUN exits because one is full (KVM_EXIT_DIRTY_RING_FULL).
 * From then on nobody else may read the ring; that somebody did before is no matter. The call may
 * come before there is a tracker, and while the vCPU runs.
 *
 * A ring has what its vCPU wrote in both address spaces, and the library keeps what is of the
 * handle's. So if both have handles with trackers, read the rings yourself, and call
 * gmem_vm_mark_slot_dirty() with each handle for all entries.
 *
 * Thread-safe; does not wait for changes of the layout. Source: mmap(2) of the vCPU's fd,
 * KVM_RESET_DIRTY_RINGS. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, or @bytes is not the ring's size, -EOPNOTSUPP the VM
 * has no dirty rings (GMEM_CAP_DIRTY_LOG), -EEXIST it was added before, -ENOMEM, or the errno
 * of mmap(2).
 */
GMEM_API int gmem_vm_add_dirty_ring(struct gmem_vm *vm, int vcpu_fd, uint64_t bytes);

/**
 * gmem_vm_remove_dirty_ring() - have the library read a vCPU's ring once more, and let go of it
 * @vm: handle
 * @vcpu_fd: vCPU fd, which does not run any more
 *
 * If KVM refuses to reset the rings, the refusal goes to the VM's log, and nothing is lost.
 *
 * Thread-safe; does not wait for changes of the layout. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -ENOENT it was not added.
 */
GMEM_API int gmem_vm_remove_dirty_ring(struct gmem_vm *vm, int vcpu_fd);

/**
 * gmem_vm_mark_slot_dirty() - say that a guest wrote a page, as an entry of a dirty ring does
 * @vm: handle
 * @slot: the entry's slot: address space in bits 16 to 31, and below them the number
 * @page: the entry's offset: number of the page in the memslot
 *
 * For a VMM that reads the rings itself: call it before you set the entry's
 * KVM_DIRTY_GFN_F_RESET, because the library may call KVM_RESET_DIRTY_RINGS at any time. Entries of
 * other address spaces and of memslots that are gone are left out. Without a tracker it does
 * nothing.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument.
 */
GMEM_API int gmem_vm_mark_slot_dirty(struct gmem_vm *vm, uint32_t slot, uint64_t page);

/* ------------------------------------------------------------- transfers -- */

/*
 * A transfer copies guest memory from a file or pipe, or to one, through buffers of its own, or
 * from the page cache, so no disk's I/O is ever under way to guest memory itself. With io_uring it
 * reads or writes many buffers at a time. Where io_uring or the thread for it is forbidden, or it
 * was not built in, or its buffers (33 MiB at most, with workers see below) do not fit, the
 * transfer uses read(2), write(2) and one buffer, and its result says so.
 *
 * A ring of the library's own belongs to a thread that submits to it, blocks all signals
 * except those of faults, has a stack of about 80 KiB (which counts where memory is locked),
 * and ends with the transfer, in gmem_transfer_free(). So the ring interrupts no system
 * call of another thread, as it would those of a thread that uses it itself, with EINTR.
 *
 * With workers of struct gmem_transfer_opts, several threads load, save and restore, each
 * its own pieces, while a step of the transfer is under way. The library starts them when
 * the transfer begins, if there are 8 MiB to do or more; they block signals as that of a ring
 * does, take 128 KiB of stack, and end when the transfer is done, has failed or is freed.
 * On a host of several NUMA nodes they move to processors of the node that a policy takes
 * their memory from (gmem_vm_set_numa()); threads of the caller's never do.
 * Where it is refused threads, as in a sandbox, or shall start none, with
 * GMEM_TRANSFER_NO_THREADS, the others do the work, and threads of the caller's can help:
 * gmem_transfer_work(). Each worker that reads has 1 MiB of buffers to itself; where these do not
 * fit, the calling thread does it all. Callbacks are called in the thread of the transfer alone.
 * Contents, counts, failures and their order are those of one worker, but after a failure up to 16
 * MiB behind the place where it occurred, and the holes between them, may be loaded, too. An image
 * has the same bytes, but for its random identity and the checksums over it, whatever the number of
 * threads was. A pipe is read by one thread. After a failure, the transfer goes on without these
 * threads.
 *
 * gmem_vm_load(), gmem_vm_save(), gmem_vm_restore() and gmem_image_verify() do
 * a whole transfer and block. They make a ring only where it pays: not for what is in the
 * page cache, nor for an image of up to 2 MiB. A program with an event loop begins a
 * transfer, which may block, and calls gmem_transfer_step() whenever gmem_transfer_fd() is ready.
 *
 * Call gmem_recovery_enable() before a transfer begins: then copies cost what
 * memcpy(3) costs, otherwise each makes a system call.
 *
 * An fd is used for what it is open for, whatever the file's permissions are. Files are
 * read and written at given offsets, and the position of the fd does not change.
 * Pipes and sockets are read and written at their present position. Writes raise no
 * SIGPIPE or SIGXFSZ, except on a ring of the caller's: to a pipe without a reader, or if
 * another process lowers RLIMIT_FSIZE while they are under way. What is read from the page
 * cache, or without a ring, of an fd that has O_DIRECT itself may be refused where its offset
 * or size is no multiple of a block, -EINVAL. If vCPUs or devices write to memory while it
 * is saved or loaded, the result mixes old and new contents.
 *
 * A transfer has leases on all memory that it reads or writes, from its beginning until
 * it is freed; their holder is the name of the function, such as "gmem_vm_save". So no
 * range of it becomes private, is discarded, removed or moved meanwhile: see "Waiting" at
 * struct gmem_vm_opts. Nor can a transfer begin where such work is under way, -EBUSY.
 *
 * gmem-image(5) describes the image that save writes and restore reads.
 */

/* Flags of struct gmem_transfer_opts */
#define GMEM_TRANSFER_NO_DIRECT	(1ull << 0) /* do not bypass the page cache */
#define GMEM_TRANSFER_NO_RING	(1ull << 1) /* do not use io_uring */
#define GMEM_TRANSFER_SYNC	(1ull << 2) /* save: done once it is on the disk */
#define GMEM_TRANSFER_OMIT_PRIVATE (1ull << 3) /* save, restore: leave private memory out */
#define GMEM_TRANSFER_LEAVE_REST (1ull << 4) /* restore: the VM may have more memory */
#define GMEM_TRANSFER_VERIFY	(1ull << 5) /* restore: verify all of the image first */
#define GMEM_TRANSFER_UNCHECKED	(1ull << 6) /* load, restore: do not check whether the memory fits */
#define GMEM_TRANSFER_ALLOW_LOST (1ull << 7) /* save, restore, verify: without pages that were lost */
#define GMEM_TRANSFER_NO_THREADS (1ull << 8) /* start none: no ring but the caller's; lent workers */
#define GMEM_TRANSFER_FOLLOWED	(1ull << 9) /* save: another image follows in the file, see @dirty */

/* Number of tags that one transfer uses on the caller's ring */
#define GMEM_TRANSFER_TAGS 64

/**
 * gmem_transfer_progress_fn - is told the progress of a transfer
 * @data: progress_data of struct gmem_transfer_opts
 * @done: bytes finished so far: of guest memory, or of the file when an image is read
 * @total: bytes in all; 0 if that is not known
 *
 * The library calls it in the thread of the transfer, after each step that did not
 * have to wait, also if @done is what it was: a step that only clears memory, or packs
 * what was read, does not change it. A save gets further by 64 MiB of guest memory or less, and
 * with a tracker by all that did not change; a load by 1 MiB, or by 64 MiB of a hole; a restore or
 * gmem_image_verify() by one record of the image, 1 MiB or less. With workers, a load gets
 * further by 16 MiB, and by 64 MiB of holes, the two others by 16 MiB. With
 * GMEM_TRANSFER_VERIFY, @total is twice the bytes of the file.
 *
 * Return: 0 to go on, anything else to stop with -ECANCELED.
 */
typedef int (*gmem_transfer_progress_fn)(void *data, uint64_t done, uint64_t total);

/**
 * gmem_transfer_lost_fn - is told a range that the hardware lost, and an image lacks
 * @data: lost_data of struct gmem_transfer_opts
 * @gpa: guest physical address, a multiple of 4096
 * @size: bytes, a multiple of 4096: whole pages of the memory that was saved, but of a page
 *	that was lost while it was being saved the rest
 *
 * The library calls it in the thread of the transfer, once for each range, in the order
 * of their addresses; ranges that touch may come as one or as several.
 */
typedef void (*gmem_transfer_lost_fn)(void *data, uint64_t gpa, uint64_t size);

/**
 * struct gmem_transfer_opts - how to transfer
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_TRANSFER_*; bits that are unknown, or for another kind of transfer,
 *	are -EINVAL
 * @image_offset: start of the image in the file; 0 for pipes, and for
 *	gmem_vm_load(), which has its own offset
 * @progress: progress callback, NULL for none
 * @progress_data: passed to @progress
 * @ring: the caller's ring, of liburing, borrowed until the transfer is freed; NULL:
 *	the transfer makes its own. Only for gmem_transfer_step() without waiting,
 *	in the thread that uses the ring. A ring of IORING_SETUP_IOPOLL, where most
 *	requests never complete, is -EINVAL, and so is GMEM_TRANSFER_NO_RING with it.
 * @ring_tag: with @ring: lowest user_data of the transfer's requests, which use
 *	GMEM_TRANSFER_TAGS numbers from here on. Transfers that share a ring need
 *	tags that differ.
 * @depth: number of buffers of 1 MiB, at most 32; 0: the library chooses
 * @workers: number of threads that transfer, with the calling one; 0 or 1: only the
 *	calling thread. At most 1024, of which up to 64 work at a time.
 * @lost: with GMEM_TRANSFER_ALLOW_LOST: is told what the image lacks, NULL for none
 * @lost_data: passed to @lost
 * @dirty: save: tracker of @vm, borrowed until the transfer is freed. If the tracker has no
 *	parent (gmem_dirty_set_parent()), all memory is saved. Otherwise the image is incremental:
 *	it has what changed since the parent was saved, and names the parent. When the save is done
 *	its image is the tracker's new parent; a save that is freed before has changed nothing. The
 *	tracker's rounds are apart from that: a save takes nothing from gmem_dirty_collect(), nor
 *	does that from a save
 * @parents: restore, gmem_image_verify(): files of the images that the one in @fd is based on, the
 *	oldest first, each at @image_offset; borrowed until the transfer is freed. NULL: it is not
 *	incremental
 * @parent_count: number of @parents
 * @reserved: must be 0
 */
struct gmem_transfer_opts {
	size_t   size;
	uint64_t flags;
	uint64_t image_offset;
	gmem_transfer_progress_fn progress;
	void    *progress_data;
	struct io_uring *ring;
	uint64_t ring_tag;
	uint32_t depth;
	uint32_t workers;
	gmem_transfer_lost_fn lost;
	void    *lost_data;
	struct gmem_dirty *dirty;
	const int *parents;
	uint32_t parent_count;
	uint32_t reserved;
};

/* Kernel interfaces of a transfer: struct gmem_transfer_result.engine */
#define GMEM_ENGINE_PLAIN	1u /* read(2), write(2) */
#define GMEM_ENGINE_IO_URING	2u

/**
 * struct gmem_transfer_result - result of a transfer, or its state so far
 * @size: sizeof this struct, set by the caller; GMEM_OPTS() fills it in
 * @file_bytes: bytes read from the file, or written to it
 * @direct_bytes: part of @file_bytes that bypassed the page cache
 * @data_bytes: bytes of guest memory that were copied; of a pass that only verifies,
 *	that would be
 * @zero_bytes: bytes of guest memory that are zero, and were not copied
 * @private_bytes: bytes of guest memory that are private, and were left out
 * @engine: GMEM_ENGINE_*
 * @no_ring: 0 with io_uring; otherwise a negative errno as the reason without:
 *	-ECANCELED not wanted or not needed, -ENOTSUP not built in, or the kernel's own
 * @lost_bytes: bytes of guest memory that the hardware lost, and the image lacks; after
 *	a restore they are zero, and not in @zero_bytes
 * @left_out_bytes: bytes of guest memory whose contents are not in the image because
 *	of their kind (enum gmem_kind)
 * @image_id: identity of the image, the last one of a sequence; 0: not known yet
 * @generation: number of images that were saved before it in its chain; 0 also of a chain that was
 *	merged into one (gmem-image(1))
 */
struct gmem_transfer_result {
	size_t   size;
	uint64_t file_bytes;
	uint64_t direct_bytes;
	uint64_t data_bytes;
	uint64_t zero_bytes;
	uint64_t private_bytes;
	uint32_t engine;
	int32_t  no_ring;
	uint64_t lost_bytes;
	uint64_t left_out_bytes;
	uint64_t image_id;
	uint64_t generation;
};

/**
 * gmem_vm_load() - fill guest memory from a file or a pipe
 * @vm: handle
 * @gpa: guest physical address to load to, any alignment
 * @fd: file, block device, pipe or socket to read, borrowed
 * @offset: start in the file, any alignment; 0 for a pipe
 * @size: bytes to load; 0: up to the end of the file
 * @opts: NULL for defaults
 * @ret: result, filled in on failure, too; NULL if not wanted
 *
 * Afterwards the guest memory at @gpa has the contents of the file at @offset. Holes of
 * the file are not read, and zeros are not written to pages that the guest does not
 * have yet (see gmem_vm_restore()), so they take no memory. Data in the page cache is
 * copied from there; the rest bypasses the page cache if the file system can. A page that
 * did not exist before may exist for a moment and be given back, if it is all zeros and
 * nobody else has a lease on it. So take a lease before a device pins memory that is being
 * loaded: a pinned page must not be replaced. And populate before a load or after it: such a
 * page may be one that gmem_vm_populate() made at the same time.
 *
 * Running out of memory would be no error, but kill: see gmem_vm_populate(). So the
 * library makes the same checks as that call, before the first byte, for what the file
 * has on its disk less what the guest's memory has already, and again before each 64
 * MiB; of a pipe, only the latter. GMEM_TRANSFER_UNCHECKED leaves them out. Whether
 * memory is mapped is asked before the first byte, too, but with a pipe and @size 0,
 * which may end before it gets there.
 *
 * After a failure, the first data_bytes + zero_bytes of the range are loaded.
 *
 * Thread-safe. Source: read(2), preadv2(2), io_uring(7), open(2) with O_DIRECT,
 * lseek(2) with SEEK_DATA, MADV_POPULATE_READ, MADV_POPULATE_WRITE; to find out which
 * pages exist, and whether all of the memory is mapped, as gmem_vm_save(). Since: 0.1.
 *
 * Return: 0, or -ENODATA the file ends before @size bytes, -ENOENT or -ENXIO the range
 * is not all memory, -EACCES part of it is private, -EOPNOTSUPP part of it is a kind of
 * memory that nothing is loaded into (enum gmem_kind), -EROFS it is ROM that differs
 * and cannot be written, -EBUSY it is being converted or removed, -ECANCELED the
 * callback stopped it, -EINVAL bad arguments, -ESPIPE @offset is not 0 and @fd has no
 * offsets, -EBADF @fd is not open, or not for reading, -E2BIG options newer than the
 * library, -EFAULT a page cannot be written: it is not there, or mapped without the
 * permission or not at all; -EHWPOISON the hardware lost a page of the guest's, which
 * gmem_vm_discard() replaces; -ENOMEM, also if the host has not the memory for it, or
 * the kernel's own errno from reading.
 */
GMEM_API int gmem_vm_load(struct gmem_vm *vm, uint64_t gpa, int fd, uint64_t offset,
			  uint64_t size, const struct gmem_transfer_opts *opts,
			  struct gmem_transfer_result *ret);

/**
 * gmem_vm_load_begin() - begin a gmem_vm_load() that is done in steps
 * @vm: as gmem_vm_load()
 * @gpa: as gmem_vm_load()
 * @fd: as gmem_vm_load(); borrowed until the transfer is freed
 * @offset: as gmem_vm_load()
 * @size: as gmem_vm_load()
 * @opts: as gmem_vm_load()
 * @ret: the transfer, for gmem_transfer_step(); yours to free with
 *	gmem_transfer_free()
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or the errors that gmem_vm_load() finds before it reads.
 */
GMEM_API GMEM_CHECKED int gmem_vm_load_begin(struct gmem_vm *vm, uint64_t gpa, int fd,
					     uint64_t offset, uint64_t size,
					     const struct gmem_transfer_opts *opts,
					     struct gmem_transfer **ret);

/**
 * gmem_vm_save() - write a VM's memory as an image
 * @vm: handle
 * @fd: file, block device, pipe or socket to write, borrowed
 * @opts: NULL for defaults
 * @ret: result, filled in on failure, too; NULL if not wanted
 *
 * Writes the pages of all regions that exist and are not zero, and allocates no guest
 * memory. A page of host memory that is not there counts as zero only if that is known:
 * no userfaultfd is asked for it, no file has it, none of it is in swap. What
 * userfaultfd owes is faulted in, which waits for its handler, so run the handler in
 * another thread. Files are asked for their holes: that of GMEM_REGION_MEMORY_FD, or
 * one that the library finds as for gmem_vm_discard(). Where the kernel does not say
 * what is behind a page, as without /proc, it is read, which allocates it if it is of a
 * shared file or of hugetlb. Memory of devices, and memory whose contents are
 * elsewhere, is not looked at: the image says only where it is (enum gmem_kind).
 * Readers recognise an incomplete image, such as one left by a process that died, a
 * full disk or a host that went down. After a failure the image is incomplete; with
 * gmem_vm_save_begin() the save can go on.
 *
 * With GMEM_TRANSFER_SYNC the image is on its disk before the save is done. A sync
 * that fails is the end of the save: the kernel may have dropped what it could not
 * write and reports that once, so every later step fails like it, and the image has
 * to be saved anew. The name of the file is safe only after an fsync(2) of its
 * directory: gmem-image(5) has the whole sequence.
 *
 * The host cannot read private memory. With GMEM_TRANSFER_OMIT_PRIVATE the image
 * has the ranges that were private, without contents, and the rest of the memory.
 *
 * A page that the hardware lost (poisoned memory) fails the save with -EHWPOISON; the
 * sentence has its guest and host address and its size. With GMEM_TRANSFER_ALLOW_LOST
 * the save goes on without such pages, tells @opts->lost which they are, and the image
 * says so: it can be restored only with that flag, too. Huge pages of hugetlb are lost
 * as a whole. Before Linux 5.14, only a transfer with recovery recognises them.
 *
 * With @dirty in @opts only what changed since the last image is saved: gmem-image(5) tells of
 * incremental images and of chains of them. Such an image takes at most 1.05 times the bytes
 * that changed, and 4 KiB, and lists of regions and private ranges where these are many. What
 * did not change is not looked at. With GMEM_TRANSFER_FOLLOWED the image says that another one
 * follows it in the same file, directly behind it: at image_offset and the file_bytes of all
 * before, which are multiples of 4096. A migration is such a sequence.
 *
 * A file that was longer than the image, or than @opts->image_offset and the image, keeps
 * what is behind: it may be yours, and readers stop at the end of the image. Use a new
 * file, or truncate it before, if its size matters.
 *
 * To compress an image, write to a pipe into `zstd` or similar: see gmem-image(5).
 *
 * Thread-safe. Source: mincore(2), cachestat(2), lseek(2) with SEEK_DATA,
 * PROCMAP_QUERY, PAGEMAP_SCAN or /proc/self/pagemap, /proc/self/smaps at most once,
 * msync(2) with MS_ASYNC, to see whether all of the memory is mapped, write(2),
 * io_uring(7), open(2) with O_DIRECT, fallocate(2), ftruncate(2), fdatasync(2),
 * getrlimit(2). Since: 0.1.
 *
 * Return: 0, or -EACCES part of the memory is private, -EBUSY part of it is being converted or
 * removed, -ECANCELED the callback stopped it, -EINVAL bad arguments, @fd is open with O_APPEND, or
 * has no disk to sync, or the tracker is another handle's, -EOVERFLOW the parent's generation is
 * the last there is, errnos of gmem_dirty_collect(), -EBADF @fd is not open, or not for writing,
 * -E2BIG options newer than the library, -EFAULT a page that exists cannot be read: it is mapped
 * without the permission or not at all; -EHWPOISON the hardware lost a page, -ENOMEM, -EFBIG a
 * write would end past RLIMIT_FSIZE, or the kernel's own errno from writing or syncing, such as
 * -ENOSPC.
 */
GMEM_API int gmem_vm_save(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
			  struct gmem_transfer_result *ret);

/**
 * gmem_vm_save_begin() - begin a gmem_vm_save() that is done in steps
 * @vm: as gmem_vm_save()
 * @fd: as gmem_vm_save(); borrowed until the transfer is freed
 * @opts: as gmem_vm_save()
 * @ret: the transfer, for gmem_transfer_step(); yours to free with
 *	gmem_transfer_free()
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or the errors that gmem_vm_save() finds before it writes.
 */
GMEM_API GMEM_CHECKED int gmem_vm_save_begin(struct gmem_vm *vm, int fd,
					     const struct gmem_transfer_opts *opts,
					     struct gmem_transfer **ret);

/**
 * gmem_vm_restore() - load an image into a VM's memory
 * @vm: handle of a VM that has its regions already
 * @fd: file, block device, pipe or socket to read, borrowed
 * @opts: NULL for defaults
 * @ret: result, filled in on failure, too; NULL if not wanted
 *
 * Afterwards the memory has the contents it had when the image was saved. Pages that
 * are not in the image are zero, and take no memory if they did not exist. Which do
 * not is found out as by gmem_vm_save(): where a private mapping of a file or
 * userfaultfd has something else, zeros are written. The VM may have other regions
 * and other ways of backing than the saved one, and the host another page size.
 *
 * The VM must have exactly the memory that the image has; with
 * GMEM_TRANSFER_LEAVE_REST it may have more, which stays as it is and need not be
 * mapped. An image has no contents for ranges that were private; with
 * GMEM_TRANSFER_OMIT_PRIVATE these stay as they are.
 *
 * Nor has it contents for memory of devices and memory whose contents are elsewhere
 * (enum gmem_kind), which stays as it is. Of such memory the VM must have what the
 * saved one had: the same kinds at the same addresses, with the same identity
 * where one was given. With GMEM_TRANSFER_LEAVE_REST that is not checked. ROM is
 * compared with the image and written only where it differs.
 *
 * An image that is damaged or incomplete is refused, and never changes memory
 * outside its list of regions. The damage may be found late, when part of the image
 * has been loaded. With GMEM_TRANSFER_VERIFY a file is read twice, and memory
 * changes only after all of the image was verified. The second time is checked like
 * the first, so nothing is stored that does not pass, but who can write the file in
 * between can still have the restore fail halfway, or another image loaded. To rule
 * that out, give a copy of your own, or a memfd with F_SEAL_WRITE, F_SEAL_GROW and
 * F_SEAL_SHRINK.
 *
 * An incremental image needs those that it is based on, in @parents of @opts. An image that
 * says that another one follows is read with all that do, as one. Of such a chain or sequence
 * only the last image must have the memory that the VM has: what older ones have elsewhere is
 * left out. Where there are parents, and of a sequence in a file, the first steps look at the
 * heads of all images, and may wait for the disk. So before memory changes it is known that
 * each image is based on the one before it, and that the VM has the memory of the last one. Of
 * a sequence in a pipe that is known when the last image comes, and memory that only older
 * images have may have changed then, if the VM has it, too.
 *
 * The image decides how much is read, the VM how much memory that takes: at most 1/256 of the VM's
 * memory for the list of private ranges, 2 MiB for that of regions, which are at most 65536, and
 * the buffers; with older images three times as much, and of private ranges of these as much as
 * gmem_image_verify() keeps. The call reads nothing from a pipe past the end of the image. Whether
 * the host has the memory is checked as for gmem_vm_load().
 *
 * An image that lacks pages, because the hardware had lost them when it was saved, is
 * refused with -EHWPOISON where it says so, which may be late, like damage. With
 * GMEM_TRANSFER_ALLOW_LOST these pages are zero, and @opts->lost is told which they are. That
 * holds for older images, too, even if the last one has something there again.
 *
 * Thread-safe. Source: as gmem_vm_load(). Since: 0.1.
 *
 * Return: 0, or -ENOMSG it is no image, -EBADMSG it is a damaged one, -ENODATA it ends too
 * early, -EOPNOTSUPP it is of a later version, or has records of a later one, -ENOENT the
 * image has memory, or more private ranges, than the VM has room for, or the VM lacks
 * memory whose contents the image does not have, -EEXIST the VM has memory that the
 * image does not have, -EACCES memory of the image or the VM is private, -EROFS ROM
 * differs from the image and cannot be written, -ESPIPE a pipe cannot be verified
 * first, nor can one be part of a chain, -ENOLINK an image is not based on the one before it,
 * or the first one is incremental: @parents lacks one, or has another, or in another order,
 * -EHWPOISON pages are
 * lost, in the image or in the VM's memory, -EBUSY,
 * -ECANCELED, -EINVAL, -EBADF, -E2BIG, -EFAULT or -ENOMEM as gmem_vm_load(), or errnos
 * from reading.
 */
GMEM_API int gmem_vm_restore(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
			     struct gmem_transfer_result *ret);

/**
 * gmem_vm_restore_begin() - begin a gmem_vm_restore() that is done in steps
 * @vm: as gmem_vm_restore()
 * @fd: as gmem_vm_restore(); borrowed until the transfer is freed
 * @opts: as gmem_vm_restore()
 * @ret: the transfer, for gmem_transfer_step(); yours to free with
 *	gmem_transfer_free()
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or the errors that gmem_vm_restore() finds before it reads.
 */
GMEM_API GMEM_CHECKED int gmem_vm_restore_begin(struct gmem_vm *vm, int fd,
						const struct gmem_transfer_opts *opts,
						struct gmem_transfer **ret);

/**
 * gmem_image_verify() - read an image and verify it, without loading it
 * @fd: as gmem_vm_restore()
 * @opts: NULL for defaults
 * @ret: result that a restore would have, filled in on failure, too; NULL if not
 *	wanted
 *
 * This needs no VM. gmem_vm_restore() accepts an image that passes, if the VM has
 * its memory.
 *
 * It takes as long as reading the file up to the end of the image, whatever sizes the
 * image claims, and the callback can stop it after each record. Of private ranges it
 * keeps 2^22, 64 MiB, and counts ranges that touch as one; an image of more than 65536
 * regions is -EBADMSG. An incremental image passes without its parents, and so does a chain
 * without its first images. With @parents of @opts they are verified, too, and that each is
 * based on the one before it. An image that lacks pages passes with GMEM_TRANSFER_ALLOW_LOST,
 * as a restore accepts it with that flag; @opts->lost and lost_bytes say what it lacks.
 *
 * Thread-safe. Source: as gmem_vm_load(). Since: 0.1.
 *
 * Return: 0, or -ENOMEM also for too many private ranges, -ENOMSG, -EBADMSG, -ENODATA,
 * -EOPNOTSUPP, -EHWPOISON, -ECANCELED, -EINVAL, -EBADF, -E2BIG or -ENOMEM as
 * gmem_vm_restore(), -ENOLINK a parent is wrong, or errnos from reading.
 */
GMEM_API int gmem_image_verify(int fd, const struct gmem_transfer_opts *opts,
			       struct gmem_transfer_result *ret);

/**
 * struct gmem_image_region - a region of the VM that an image was saved of
 * @gpa: guest physical address, a multiple of 4096
 * @size: bytes, a multiple of 4096
 * @private_bytes: bytes of it that were private, whose contents are not in the image
 * @identity: of memory whose contents are not in the image: the identity that the saved
 *	VM gave it (struct gmem_region_opts)
 * @backing: how it was backed, an enum gmem_backing; 0 if its contents are not in the image
 * @kind: GMEM_KIND_DEVICE or GMEM_KIND_EXTERNAL: its contents are not in the image.
 *	GMEM_KIND_DEFAULT: they are; an image does not tell RAM from ROM.
 * @reserved: 0; place for what later versions have to say
 */
struct gmem_image_region {
	uint64_t gpa;
	uint64_t size;
	uint64_t private_bytes;
	uint64_t identity;
	uint32_t backing;
	uint32_t kind;
	uint64_t reserved[3];
};

/* Flags of struct gmem_image_summary */
#define GMEM_IMAGE_FOLLOWED	(1ull << 0) /* another image follows in the file */

/**
 * struct gmem_image_summary - what the lists at the start of an image say
 * @size: sizeof this struct, set by the caller; GMEM_OPTS() fills it in
 * @id: identity of the image: every save makes a new one
 * @page_size: bytes of a page of the host that saved it
 * @memory_bytes: bytes of all regions whose contents are in the image, what is private of
 *	them included
 * @private_bytes: bytes of these that were private, whose contents are not in the image
 * @left_out_bytes: bytes of the regions whose contents are not in the image because of
 *	their kind
 * @version: version of the format, as in gmem-image(5)
 * @region_count: number of regions, of both sorts
 * @parent: identity of the image that this one is based on; 0: it is not incremental
 * @generation: number of images that were saved before it in its chain; 0 also of a chain that was
 *	merged into one (gmem-image(1))
 * @flags: GMEM_IMAGE_*
 */
struct gmem_image_summary {
	size_t   size;
	uint64_t id;
	uint64_t page_size;
	uint64_t memory_bytes;
	uint64_t private_bytes;
	uint64_t left_out_bytes;
	uint32_t version;
	uint32_t region_count;
	uint64_t parent;
	uint64_t generation;
	uint64_t flags;
};

/**
 * gmem_image_info() - read which regions an image has, without the rest of it
 * @fd: file, block device, pipe or socket to read, borrowed
 * @opts: as gmem_image_verify(); NULL for defaults
 * @ret: set its size; receives sums; untouched on failure; NULL if not wanted
 * @regions: filled in the order of their addresses; untouched on failure. NULL, with
 *	@max 0: only the number is wanted
 * @max: entries in @regions; an image has 131072 regions at most
 *
 * This needs no VM: a program can make the regions that a restore needs. It reads the
 * lists, which are at the start of the image, and checks them as gmem_image_verify() does;
 * whether the rest is whole, only that tells. The lists take as much memory there.
 *
 * Of a sequence it tells the first image, whose flags say that others follow. It takes no
 * @parents. A pipe or a socket has then lost what was read, up to 1 MiB at a time, so the image
 * cannot be restored from it any more.
 *
 * Thread-safe. Source: as gmem_vm_load(). Since: 0.1.
 *
 * Return: number of regions, or -ENOSPC there are more than @max, -EINVAL NULL argument
 * or bad size, -ENOMSG, -EBADMSG, -ENODATA, -EOPNOTSUPP, -ECANCELED, -EBADF, -E2BIG or
 * -ENOMEM as gmem_image_verify(), or errnos from reading.
 */
GMEM_API int gmem_image_info(int fd, const struct gmem_transfer_opts *opts,
			     struct gmem_image_summary *ret, struct gmem_image_region *regions,
			     size_t max);

/* Results of gmem_transfer_step() without a failure */
#define GMEM_TRANSFER_DONE 0	/* the transfer is done */
#define GMEM_TRANSFER_MORE 1	/* call again: there is more to do */
#define GMEM_TRANSFER_WAIT 2	/* call again when gmem_transfer_fd() is ready */

/**
 * gmem_transfer_step() - do the next part of a transfer
 * @transfer: transfer
 * @wait: 0: never wait for the file (but see below); 1: block until there is
 *	progress. Must be 0 with the caller's ring.
 *
 * A step copies at most one buffer of 1 MiB, or 16 MiB with workers. With io_uring and @wait 0 it
 * waits for no data of the file, and for no sync: these are requests of the ring. It does what it
 * does to guest memory itself, which may take as long as the kernel needs to allocate a page, to
 * read it from swap, or to have a userfaultfd serve it; and a load asks a file with holes where its
 * data is, for which the file system may read its metadata. A step submits the ring's queue, with
 * whatever else the caller has put there.
 *
 * Without io_uring a step reads, writes and syncs a file itself and blocks as long as
 * the disk takes; of a pipe it reads or writes only as much as poll(2) and O_NONBLOCK
 * allow.
 *
 * After a failure it may be called again and repeats what failed. So a transfer can
 * go on when the disk has space again, or after the callback stopped it. One failure
 * is told of all requests that were under way. Only a failed sync is final, and so are
 * -ENODATA, an end that came too early, and -EFAULT where nothing was mapped when the
 * transfer began: a later mapping there may be somebody else's.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: GMEM_TRANSFER_DONE, GMEM_TRANSFER_MORE or GMEM_TRANSFER_WAIT, or as
 * gmem_vm_load(), gmem_vm_save(), gmem_vm_restore(); -EINVAL also after
 * gmem_transfer_free() returned -EBUSY, -ESTALE after gmem_vm_free(), or
 * io_uring_enter(2)'s own errno.
 */
GMEM_API int gmem_transfer_step(struct gmem_transfer *transfer, int wait);

/**
 * gmem_transfer_work() - lend the calling thread to a transfer
 * @transfer: transfer with workers
 *
 * The thread does pieces of the work whenever a step of the transfer is under way in
 * another thread, and sleeps in between. It returns when the transfer is done, when a step
 * has failed, or when the transfer is freed, which waits for it; at once where that was
 * before, and for a transfer without workers, or of which one thread does all: one that
 * reads a pipe, or has no memory for more buffers. It is not interrupted by signals, whose
 * handlers run.
 *
 * For programs that may start no threads later on, or want theirs to do the work
 * (GMEM_TRANSFER_NO_THREADS). As many threads work at a time as there are workers, the
 * stepping one and of the others whichever come first, the library's or those that are
 * lent. None may be lent to a transfer that is freed: join them before, once a step
 * returned GMEM_TRANSFER_DONE or failed. The progress callback can have it fail.
 *
 * A thread that was lent cannot step or free the transfer. In a child of fork() it returns
 * at once.
 *
 * Thread-safe, also while another thread steps, but not from a callback of the transfer.
 * Since: 0.1.
 *
 * Return: 0, also after a step failed, or -ESTALE after gmem_vm_free(), -EINVAL @transfer is
 * NULL, or the thread blocks SIGBUS or SIGSEGV although the transfer relies on
 * gmem_recovery_enable().
 */
GMEM_API int gmem_transfer_work(struct gmem_transfer *transfer);

/**
 * gmem_transfer_fd() - fd to poll before the next step
 * @transfer: transfer
 * @ret_events: POLLIN or POLLOUT, as in poll(2)
 *
 * This is the fd of the transfer's ring, or without a ring that of the file or pipe. It
 * is borrowed, and lives as long as the transfer.
 *
 * Without a ring there is nothing to wait for in a file: poll(2) says at once that it is
 * ready, and epoll_ctl(2) refuses it, EPERM. No step returns GMEM_TRANSFER_WAIT then, so a
 * loop that polls only after this value needs no special case.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: a file descriptor, or -EINVAL NULL argument.
 */
GMEM_API int gmem_transfer_fd(const struct gmem_transfer *transfer, int16_t *ret_events);

/**
 * gmem_transfer_complete() - hand over a completion from the caller's ring
 * @transfer: transfer that uses the caller's ring
 * @tag: user_data of the completion
 * @res: res of the completion
 *
 * Call it for each completion whose user_data belongs to the transfer, then call
 * gmem_transfer_step(), or gmem_transfer_free() again.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL no such completion is to come: the tag is not this
 * transfer's, or was handed over before, or @res is more than was asked for.
 */
GMEM_API int gmem_transfer_complete(struct gmem_transfer *transfer, uint64_t tag, int32_t res);

/**
 * gmem_transfer_get_result() - get the result of a transfer so far
 * @transfer: transfer
 * @ret: filled in, up to the size it has
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or size.
 */
GMEM_API int gmem_transfer_get_result(const struct gmem_transfer *transfer,
				  struct gmem_transfer_result *ret);

/**
 * gmem_transfer_free() - end a transfer, finished or not
 * @transfer: transfer, or NULL; invalid after success
 *
 * Cancels requests that are under way and waits for their end. Memory that was
 * loaded stays so. With the caller's ring it cannot wait: it submits requests to
 * cancel, and must be called again after completions have been handed over, until it
 * returns 0. Then no completion with a tag of the transfer can come any more: those of
 * the requests to cancel have come, too, which use tags of the transfer.
 *
 * If the kernel refuses to cancel a request on the transfer's own ring that may never
 * end by itself, such as a read from a pipe, the buffers are left mapped for ever:
 * the kernel could still write to them.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 *
 * Return: 0, or -EBUSY completions are still to come on the caller's ring.
 */
GMEM_API int gmem_transfer_free(struct gmem_transfer *transfer);

/* ------------------------------------------------------------- migration -- */

/*
 * A migration sends a VM's memory while the VM runs: first all of it, then, round after round,
 * what changed meanwhile, and at last, with vCPUs and devices stopped, the rest. After each
 * round the library says what is left, how fast that grows, and how long the pause would be.
 * The caller decides whether to go on, to slow the guest down, or to stop the VM for the last
 * round.
 *
 *	err = gmem_migration_new(vm, sock, NULL, &migration);
 *	do
 *		err = gmem_migration_round(migration, &status);
 *	while (!err && status.pause_ns > 50 * 1000 * 1000);
 *	stop vCPUs and devices
 *	err = gmem_migration_finish(migration, &status);
 *	send what is not memory, and wait for the receiver's answer
 *	gmem_migration_free(migration);
 *
 * A real loop also ends after a number of rounds, or when a round leaves as much as the one
 * before it, although the pause is longer than wished.
 *
 * What is sent is a sequence of images (gmem-image(5)): each but the last says that another one
 * follows, and each but the first names the one before it as its parent. The receiver is
 * gmem_vm_restore(), in a VM that has the same memory but may have other regions, ways of
 * backing and page sizes. It returns when the last image is complete, and reads nothing past
 * that, so what is not memory can follow in the same stream. A migration to a file is a
 * snapshot of a VM that runs, in one file that gmem_vm_restore() reads and gmem-image(1) can merge.
 *
 * Where the receiver ends, a round fails with -EPIPE, -ECONNRESET or what the kernel says, and the
 * VM and other trackers are as if there had been no migration; where it is slow, a round takes
 * longer. Where the source ends, the restore fails with -ENODATA: do not use its memory. A stream
 * cannot be resumed: begin a new migration, with a receiver that begins, too. A stream that begins
 * with what changed is -ENOLINK there. That the last round was sent does not mean that the receiver
 * has it, as sockets and networks have buffers: have it answer before the source lets go of the VM.
 *
 * The VM's memory is leased during a round, as by every transfer: until the round is over,
 * its conversions to private and discards wait, and changes that remove memory are refused.
 * Between rounds all of that works. Memory that is added or removed then must be so at
 * the receiver from the beginning: the list of the last image counts.
 */

/* Flags of struct gmem_migration_opts */
#define GMEM_MIGRATION_OMIT_PRIVATE (1ull << 0) /* as GMEM_TRANSFER_OMIT_PRIVATE */
#define GMEM_MIGRATION_VCPUS_STOPPED (1ull << 1) /* as GMEM_DIRTY_VCPUS_STOPPED, for the new call */
#define GMEM_MIGRATION_ALLOW_UNLOGGED (1ull << 2) /* as GMEM_DIRTY_ALLOW_UNLOGGED */
#define GMEM_MIGRATION_RINGS	(1ull << 3) /* as GMEM_DIRTY_RINGS */
#define GMEM_MIGRATION_NO_THREADS (1ull << 4) /* as GMEM_TRANSFER_NO_THREADS */

/**
 * struct gmem_migration_opts - how to migrate
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_MIGRATION_*; unknown bits are -EINVAL
 * @image_offset: where the first image begins in a file; 0 for pipes and sockets. Each other one
 *	begins directly behind the one before it.
 * @max_bytes_per_second: limit for what all rounds but the last write; 0: none. On average, not
 *	counting what 10 ms allow: a step may write some MiB at once, and then waits for as long
 *	as these take.
 * @progress: as in struct gmem_transfer_opts, for each round: the bytes of guest memory that it is
 *	done with, changed or not, of all there are; anything but 0 stops the round. NULL for none
 * @progress_data: passed to @progress
 * @workers: as in struct gmem_transfer_opts
 * @reserved: must be 0
 */
struct gmem_migration_opts {
	size_t   size;
	uint64_t flags;
	uint64_t image_offset;
	uint64_t max_bytes_per_second;
	gmem_transfer_progress_fn progress;
	void    *progress_data;
	uint32_t workers;
	uint32_t reserved;
};

/**
 * struct gmem_migration_status - what a round did, and what is left
 * @size: sizeof this struct, set by the caller; GMEM_OPTS() fills it in
 * @round: number of rounds that are done
 * @sent_bytes: bytes written to the file in this round, and
 * @total_bytes: in all rounds
 * @memory_bytes: bytes of memory that this round sent, also those that are zero; 0 if it failed
 * @ns: nanoseconds that this round took
 * @left_bytes: bytes of memory that changed since it began, and are to be sent; 0 after the last
 * @dirty_rate: bytes of memory that change in a second: @left_bytes over the time since this
 *	round began. A page that changes twice counts once, so a short round tells a
 *	higher rate than a long one.
 * @send_rate: bytes that can be written in a second: those of this round, and of earlier rounds
 *	with less and less weight, over the time that it took without the waits for the
 *	limit. With a limit it may be more than the network takes, which empties the buffers of a
 *	socket during these waits. Of memory that is zero next to nothing is written, so more
 *	memory than this can be sent.
 * @pause_ns: nanoseconds that gmem_migration_finish() would take if it were called now, as far as
 *	can be told: @left_bytes, some of it zero as in the rounds before, and what each round takes
 *	beside that. After the first round @left_bytes at @send_rate, but no longer than it took.
 * @unlogged_bytes: part of @left_bytes that has no log, and is sent each time
 *
 * A migration converges while @pause_ns is below @ns: what a round left takes less time than the
 * round. Where nothing is zero, that is so if @dirty_rate is below @send_rate. With a limit,
 * which @pause_ns does not know, @dirty_rate should be below that, too. A VMM that slows its vCPUs
 * down (auto-converge) looks at the ratio of @pause_ns and @ns.
 */
struct gmem_migration_status {
	size_t   size;
	uint64_t round;
	uint64_t sent_bytes;
	uint64_t total_bytes;
	uint64_t memory_bytes;
	uint64_t ns;
	uint64_t left_bytes;
	uint64_t dirty_rate;
	uint64_t send_rate;
	uint64_t pause_ns;
	uint64_t unlogged_bytes;
};

/**
 * gmem_migration_new() - begin to migrate a VM's memory
 * @vm: handle
 * @fd: stream socket, pipe, file or block device to write, borrowed until the migration is
 *	freed; with O_NONBLOCK or without, but where the transfers have no ring, a socket that may
 *	block is written in pieces of 4 KiB, which takes several times as long
 * @opts: NULL for defaults
 * @ret: the migration, yours to free with gmem_migration_free()
 *
 * Makes a tracker (gmem_dirty_new()), and sends nothing yet. With GMEM_MIGRATION_VCPUS_STOPPED no
 * vCPU may run until it returns.
 *
 * Thread-safe. Do not call it between gmem_view_begin() and gmem_view_end() of the same
 * thread. Source: as gmem_dirty_new(), eventfd(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, bad options, or @fd has O_APPEND, -E2BIG options newer
 * than the library, -EBADF @fd is not open for writing, -ESPIPE an image_offset in a pipe or
 * socket, -EPROTOTYPE a socket of messages, such as SOCK_SEQPACKET, -EMFILE or -ENFILE no event fd,
 * and the errors of gmem_dirty_new().
 */
GMEM_API GMEM_CHECKED int gmem_migration_new(struct gmem_vm *vm, int fd,
					     const struct gmem_migration_opts *opts,
					     struct gmem_migration **ret);

/**
 * gmem_migration_round() - send what changed since the last round; first all memory
 * @migration: migration
 * @ret: set its size; receives what was done, also after a failure, and what is left, which after
 *	a failure is what the round before left; NULL if not wanted
 *
 * Blocks until the round is written, and goes on after signals. vCPUs and devices may run.
 *
 * A round that failed while it wrote breaks the stream. One that could not begin, such as
 * -EBUSY, does not, nor does a failure to find out what is left: call again.
 *
 * One thread at a time per object; different objects in parallel. Source: as
 * gmem_vm_save() and gmem_dirty_collect(), poll(2). Since: 0.1.
 *
 * Return: 0, or -ECANCELED the callback stopped it, or gmem_migration_cancel() was called, now
 * or before, -EPIPE or -ECONNRESET the receiver is gone, -ENOTCONN an earlier round failed: the
 * stream is broken and cannot be resumed, -EALREADY the last round was sent, -EINVAL NULL
 * argument, or @ret is too small, and the errors of gmem_vm_save() and gmem_dirty_collect().
 */
GMEM_API int gmem_migration_round(struct gmem_migration *migration,
				  struct gmem_migration_status *ret);

/**
 * gmem_migration_finish() - send the rest, and the end of the stream
 * @migration: migration
 * @ret: as gmem_migration_round()
 *
 * Stop all that writes to guest memory before: vCPUs, devices and their processes, and your own
 * threads. A process that imports memory stops, too, but keeps its connection until this returns:
 * all that it may write counts as changed when it ends. There is no limit for this round. It may
 * be the first one: that is a migration of a VM that stands still. If the VM goes on after it,
 * nothing has happened to it.
 *
 * One thread at a time per object; different objects in parallel. Source: as
 * gmem_migration_round(). Since: 0.1.
 *
 * Return: as gmem_migration_round().
 */
GMEM_API int gmem_migration_finish(struct gmem_migration *migration,
				   struct gmem_migration_status *ret);

/**
 * gmem_migration_cancel() - have the round that another thread is in end, and every later one
 * @migration: migration, or NULL
 *
 * Ends it also where it waits for a receiver that does not read, or for the limit; what is
 * being written to a file is waited for. The VM goes on as if there had been no migration. The
 * receiver gets -ENODATA once the fd is closed.
 *
 * Thread-safe. Since: 0.1.
 */
GMEM_API void gmem_migration_cancel(struct gmem_migration *migration);

/**
 * gmem_migration_set_limit() - change the limit, also for the round under way
 * @migration: migration, or NULL
 * @bytes_per_second: as max_bytes_per_second of struct gmem_migration_opts
 *
 * Thread-safe. Since: 0.1.
 */
GMEM_API void gmem_migration_set_limit(struct gmem_migration *migration,
				       uint64_t bytes_per_second);

/**
 * gmem_migration_free() - end a migration, finished or not
 * @migration: migration, or NULL
 *
 * Frees its tracker, as gmem_dirty_free() does, so it waits like that. The fd stays open.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_migration_free(struct gmem_migration *migration);

/* --------------------------------------------------------------- exports -- */

/*
 * A process that maps the file behind guest memory uses the guest's own pages.
 * But a process that has a file can map all of it, and for as long as it likes, so
 * libgmem checks each file before it gives it to another process.
 */

/* Access rights: struct gmem_extent.rights */
#define GMEM_RIGHT_READ		(1u << 0)
#define GMEM_RIGHT_WRITE	(1u << 1)

/**
 * struct gmem_extent - range of guest memory that is contiguous in one file
 * @gpa: guest physical address of its start
 * @size: bytes
 * @hva: host address in this process
 * @offset: offset of its start in the file
 * @file_size: size of the file in bytes
 * @page_size: bytes of the file's pages. gmem_peer_add() gives an extent only if
 *	@gpa, @size and @offset are multiples of it.
 * @fd: the file, borrowed; -1 if this process has no fd of it
 * @rights: GMEM_RIGHT_*
 * @backing: way of backing in the VMM, an enum gmem_backing
 * @reserved: 0
 */
struct gmem_extent {
	uint64_t gpa;
	uint64_t size;
	void    *hva;
	uint64_t offset;
	uint64_t file_size;
	uint64_t page_size;
	int32_t  fd;
	uint32_t rights;
	uint32_t backing;
	uint32_t reserved;
};

/* Flags of struct gmem_export_opts */
#define GMEM_EXPORT_SKIP	(1ull << 0) /* leave out regions that cannot be given */
#define GMEM_EXPORT_UNSEALED	(1ull << 1) /* accept files that their users can change */

/**
 * struct gmem_export_opts - how to export
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_EXPORT_*; unknown bits are -EINVAL. With GMEM_EXPORT_UNSEALED every
 *	peer can do to a file what its seals do not forbid: cut it, after which the
 *	guest's accesses fail and those of this process raise SIGBUS; or seal it
 *	against writing, after which this process cannot discard its memory.
 */
struct gmem_export_opts {
	size_t   size;
	uint64_t flags;
};

/**
 * gmem_export_new() - prepare a VM's memory for other processes
 * @vm: handle
 * @opts: NULL for defaults
 * @ret: the export, yours to free with gmem_export_free()
 *
 * Other processes get a region with backing shared or mapped as its guest_memfd. They
 * get a region with backing host, or the shared side of one with backing private, if
 * the library made it as a memfd (GMEM_MEMORY_MEMFD), if you said of which file it is a
 * part (GMEM_REGION_MEMORY_FD), or if gmem_export_add_memory() was called for it.
 * Anonymous memory cannot be given, because no fd refers to it. No kernel is too old
 * for that: it needs no guest_memfd. Memory of kind GMEM_KIND_DEVICE is left out,
 * unless gmem_export_add_memory() was called for it.
 *
 * What the guest may only read (GMEM_REGION_READONLY), and a file that is open for
 * reading only, are given with GMEM_RIGHT_READ. Importers of the library's then map
 * them for reading only, but what keeps another process from writing to the file is a
 * seal alone, F_SEAL_FUTURE_WRITE. Where that is missing, gmem_peer_add() refuses a
 * range of @ranges in struct gmem_peer_opts whose rights are GMEM_RIGHT_READ, but not
 * memory that is for reading only by its region or its fd: a hostile peer can write
 * there.
 *
 * Thread-safe; waits as gmem_listener_new(), then for changes of the layout under
 * way. Source: eventfd(2), timerfd_create(2), epoll(7). Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument or bad options, -E2BIG options newer than
 * the library, -EMFILE, -ENFILE, -ENOMEM, -EDEADLK called from a listener's callback,
 * -EBUSY a change of the layout has not ended within wait_ms of struct gmem_vm_opts.
 */
GMEM_API GMEM_CHECKED int gmem_export_new(struct gmem_vm *vm,
					  const struct gmem_export_opts *opts,
					  struct gmem_export **ret);

/**
 * gmem_export_free() - end an export and its peers
 * @exporter: export, or NULL
 *
 * Do not call it from a listener's callback: it then only writes to the VM's
 * log. It ends the peers, and then waits as gmem_listener_free().
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_export_free(struct gmem_export *exporter);

/**
 * gmem_export_add_memory() - tell the export the file behind your own memory
 * @exporter: export
 * @hva: page-aligned host address
 * @size: bytes, non-zero, a multiple of the page
 * @fd: the memfd or hugetlbfs file that is mapped there, MAP_SHARED; duplicated. If it
 *	is open for reading only, the memory is given with GMEM_RIGHT_READ.
 * @offset: offset of @hva in the file, a multiple of the page
 *
 * For memory that was not added with GMEM_REGION_MEMORY_FD, whose file the export knows
 * by itself; if both name one, this one counts. The same is asked of the seals of both.
 * Call it before you add the region that uses the memory, or later, before the memory
 * is given. Any process that has a file can cut it, grow it, or add seals to it that
 * make this process's mappings, exports and discards fail. So create the memfd with
 * MFD_ALLOW_SEALING, map it, and seal it with F_SEAL_SHRINK | F_SEAL_GROW |
 * F_SEAL_SEAL. If it is to be given for reading only, add F_SEAL_FUTURE_WRITE in the
 * same call; its memory can then not be discarded. A file on tmpfs or hugetlbfs that
 * memfd_create(2) did not make cannot be sealed: it needs GMEM_EXPORT_UNSEALED.
 *
 * Thread-safe. Source: fstat(2), fstatfs(2), F_GET_SEALS. Since: 0.1.
 *
 * Return: 0, or -EINVAL bad range, @fd is no such file or ends before the
 * range does, -EPERM it lacks a seal, -EEXIST part of the range was added
 * already, -EBADF @fd is not open, or not for reading, -ESTALE after gmem_vm_free(),
 * -EMFILE, -ENOMEM.
 */
GMEM_API int gmem_export_add_memory(struct gmem_export *exporter, void *hva, uint64_t size,
				    int fd, uint64_t offset);

/**
 * gmem_export_remove_memory() - undo a gmem_export_add_memory()
 * @exporter: export
 * @hva: the same address as in gmem_export_add_memory()
 *
 * Call it when no region uses the memory any more, before the address gets another
 * use. That is not checked.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -ENOENT no memory was added with that start, -ESTALE after
 * gmem_vm_free(), -EINVAL NULL argument.
 */
GMEM_API int gmem_export_remove_memory(struct gmem_export *exporter, const void *hva);

/**
 * gmem_export_table() - get the memory that other processes can map
 * @exporter: export
 * @extents: filled in GPA order; untouched on failure; may be NULL if @max is 0
 * @max: entries in @extents; 0 only asks how many there are
 *
 * There is one extent for each region that has memory. For backing private it is
 * all of the shared side, whatever is shared at the moment.
 *
 * Thread-safe; each fd is valid until its region is removed or rebound, or
 * gmem_export_remove_memory(). Since: 0.1.
 *
 * Return: number of extents filled in, or -EOPNOTSUPP a region cannot be given: it is
 * no part of a file, or of one that is not on tmpfs or hugetlbfs (gmem_last_error()
 * says why and what would help; GMEM_EXPORT_SKIP leaves it out), -EPERM the file of a
 * GMEM_REGION_MEMORY_FD lacks a seal (the same), -ENOSPC there are more than @max, and
 * the sentence says how many, -ESTALE after gmem_vm_free(), -ENOMEM, -EINVAL NULL argument.
 */
GMEM_API int gmem_export_table(struct gmem_export *exporter, struct gmem_extent *extents,
			       size_t max);

/**
 * struct gmem_vhost_user_region - one entry of a vhost-user memory table
 * @guest_phys_addr: gpa
 * @memory_size: bytes
 * @userspace_addr: hva in this process, which the front-end uses as address of rings
 * @mmap_offset: offset of its start in its file
 *
 * The layout is that of VHOST_USER_SET_MEM_TABLE, in the host's byte order.
 */
struct gmem_vhost_user_region {
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t mmap_offset;
};

/**
 * gmem_export_vhost_user() - get the table for VHOST_USER_SET_MEM_TABLE
 * @exporter: export
 * @regions: filled in GPA order; untouched on failure; may be NULL if @max is 0
 * @fds: the file of each region, borrowed, to send in this order with the message;
 *	untouched on failure; may be NULL if @max is 0
 * @max: entries in both arrays: 8, or the number that the back-end accepts; 0 only asks
 *	how many are needed
 *
 * Back-ends accept few entries, so regions that are adjacent in the guest, in one file
 * and in this process share an entry. GMEM_REGION_RESERVED makes them adjacent in this
 * process: sixteen DIMMs of one file, in address space that was reserved for them, are
 * one entry. vhost-user has no message to take memory back, so do not give it memory
 * that is converted.
 *
 * Thread-safe; the fds are valid as those of gmem_export_table(). Since: 0.1.
 *
 * Return: number of entries filled in, or as gmem_export_table(), and -EOPNOTSUPP
 * for a region that may only be read, by the guest or through its file, because a
 * back-end maps all memory for writing (GMEM_EXPORT_SKIP leaves it out).
 */
GMEM_API int gmem_export_vhost_user(struct gmem_export *exporter,
				    struct gmem_vhost_user_region *regions, int *fds,
				    size_t max);

/* Flags of struct gmem_peer_opts */
#define GMEM_PEER_WHOLE_FILES	(1ull << 0) /* the peer may reach all of a file it gets part of */
#define GMEM_PEER_CUT_OFF	(1ull << 1) /* end the peer if it does not answer */

/**
 * struct gmem_export_range - guest addresses that a peer may have
 * @gpa: start, a multiple of the page
 * @size: bytes, non-zero, a multiple of the page
 * @rights: GMEM_RIGHT_*, at most: a file whose seals allow less is given with less
 * @reserved: must be 0
 */
struct gmem_export_range {
	uint64_t gpa;
	uint64_t size;
	uint32_t rights;
	uint32_t reserved;
};

/**
 * struct gmem_peer_opts - memory and rights of a peer
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_PEER_*; unknown bits are -EINVAL
 * @ranges: ranges that the peer may have, in GPA order, not overlapping; copied.
 *	NULL: all present and future memory, with the rights that its files allow.
 * @range_count: entries in @ranges
 * @wait_ms: longest time that a call waits for the peer's answers, all of them
 *	together, when memory is taken back, in milliseconds; 0: 1000
 * @reserved: must be 0
 */
struct gmem_peer_opts {
	size_t   size;
	uint64_t flags;
	const struct gmem_export_range *ranges;
	size_t   range_count;
	uint32_t wait_ms;
	uint32_t reserved;
};

/**
 * gmem_peer_add() - give memory to the process at the other end of a socket
 * @exporter: export
 * @sock: a connected AF_UNIX socket of type SOCK_SEQPACKET, duplicated; close
 *	your own fd, or the peer never sees the end of the connection
 * @opts: NULL for defaults
 * @ret: the peer; ends with gmem_peer_remove() or gmem_export_free()
 *
 * The other process calls gmem_import_new(). It gets memory as its answers come in
 * (gmem_export_dispatch()), and is told when regions are added and removed.
 *
 * The library takes a region back from peers before it is removed, moved or
 * rebound, and a range before it becomes private, and waits for their answers.
 * If the answers do not come in time, the removal or conversion fails with
 * -ETIMEDOUT and nothing has changed; with GMEM_PEER_CUT_OFF the peer is cut
 * off, and the call goes on. If the call itself waits for less than that, it fails,
 * and the peer is cut off when a call finds that its answer is overdue. If the peer
 * refuses, they fail with -ENOMEM, -EAGAIN or -EBUSY if that is its reason, and with
 * -EREMOTEIO for any other. Memory that becomes shared again is given again.
 * Taking back relies on the peer, which can keep a mapping: it protects both
 * sides from mistakes. But no peer can reach private memory, whatever it does.
 * What a peer gives back too late it gets again; its answer, a refusal, too, counts
 * for nobody who did not wait for it.
 *
 * Memory is given and taken back in whole pages of its file. Where these are larger
 * than the guest's, as on hugetlbfs, the peer loses all of a page of which a part
 * becomes private, and gets it again when all of it is shared. So a region, and each
 * of @opts->ranges, must have whole pages of its file, at a multiple of their size
 * in guest addresses, too.
 *
 * Memory that the peer has no room for at the moment (it answers EMFILE, ENFILE,
 * ENOMEM or EAGAIN), or that the kernel does not let through (ETOOMANYREFS), is
 * offered again after 100 ms, and later every 2 s: gmem_export_fd() becomes
 * readable then. Meanwhile everything else goes on.
 *
 * A process that has a file can map all of it. So a file is given only if one range of
 * one region that the peer may have is the whole file, or with GMEM_PEER_WHOLE_FILES:
 * use one memfd for each region. A range whose rights are GMEM_RIGHT_READ is given only
 * if the seals of its file enforce that (F_SEAL_FUTURE_WRITE); an fd that is open for
 * reading only does not, as the peer can open the file anew. Without such a range that
 * seal is not asked for, so a hostile peer can write to memory that is added with
 * GMEM_REGION_READONLY. If present memory cannot be given under these rules, the call
 * fails; memory added later is left out, with a message in the VM's log.
 *
 * A peer can write anything to the memory it has, free its pages, and, by keeping a
 * guest_memfd, keep the VM in the kernel's memory. It gets nothing else, and can
 * make nothing else fail. It costs this process one message at a time and, for
 * memory that can be converted, one bit for each page of the file, most of which
 * are never written; no more, however it behaves.
 *
 * While the VM has a tracker (gmem_dirty_new()), the peer is given a map, too, in which its
 * library marks what its views write: a memfd with a byte for each page below the end of
 * memory. It costs 1/4096 of what the peer writes, with pages of 4 KiB, and of a hostile peer up
 * to 1/4096 of the guest addresses below that end, rounded up to a power of two, or
 * 256 KiB. All that the peer may write counts as changed
 * at each collection until its answer is read (gmem_export_dispatch()), and always if
 * it does not know how, or has no room for the map. It counts once more when its connection
 * ends, because it may have been killed between a write and its mark; what was in its map
 * at the end, and what it marks later, counts until gmem_peer_remove(), and without a map all of
 * it does each time. A process that has been waited for (waitpid(2)) has its writes in the
 * next collection: let devices end, or say that they have stopped, before you collect for the
 * last time.
 *
 * Thread-safe. Source: unix(7), SCM_RIGHTS, memfd_create(2). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad options, or another kind of socket, -EOPNOTSUPP
 * memory cannot be given as the options ask (see gmem_export_table(), too),
 * -EACCES a file has more than the peer may have, -EBADF @sock is not open,
 * -ENOTSOCK it is no socket, -E2BIG options newer than the library, -ESTALE after
 * gmem_vm_free(), -EMFILE, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_peer_add(struct gmem_export *exporter, int sock,
					const struct gmem_peer_opts *opts,
					struct gmem_peer **ret);

/**
 * gmem_peer_remove() - stop giving memory to a peer
 * @peer: peer, or NULL; invalid afterwards
 *
 * The call does not wait for the peer, which sees the end of the connection. All that it could
 * write counts as changed for trackers once more, but what it writes after this call they do
 * not know: have it end first, or stop writing.
 *
 * Thread-safe, but no thread may use the peer any more. Since: 0.1.
 */
GMEM_API void gmem_peer_remove(struct gmem_peer *peer);

/**
 * gmem_peer_status() - get the state of a peer
 * @peer: peer
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 1 the peer has all the memory it should have; 0 messages or answers are
 * under way, or memory is to be offered again; or -EPIPE the process is gone, -EPROTO it
 * sent a message that no import sends, -ETIMEDOUT it was cut off, or the errno with which
 * it refused memory, all of which end it; -ESTALE after gmem_vm_free(), -EINVAL for NULL.
 */
GMEM_API int gmem_peer_status(struct gmem_peer *peer);

/**
 * gmem_peer_wait() - wait until a peer has all the memory it should have
 * @peer: peer
 * @ms: milliseconds to wait; 0: only look, below 0: no limit
 *
 * Does what gmem_export_dispatch() does, for all peers of the export, whenever
 * gmem_export_fd() is readable, so a VMM that starts a device, or has added memory, needs
 * no loop of its own. Other threads may wait or dispatch at the same time: what they read
 * is noticed within 10 ms, and so is gmem_vm_free(). Signals do not end the wait.
 *
 * Thread-safe. No thread may free the peer meanwhile. Source: poll(2). Since: 0.1.
 *
 * Return: 1 as gmem_peer_status(); 0 the time is over; or the errors of
 * gmem_peer_status(), -ESTALE also if the VM's handle is freed meanwhile.
 */
GMEM_API int gmem_peer_wait(struct gmem_peer *peer, int ms);

/**
 * gmem_export_fd() - fd to poll for an export
 * @exporter: export
 *
 * The fd is readable when gmem_export_dispatch() has something to do. It is
 * borrowed.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: an fd for poll(2) and the like, or -EINVAL for NULL.
 */
GMEM_API int gmem_export_fd(const struct gmem_export *exporter);

/**
 * gmem_export_dispatch() - read the answers of peers and send messages to them
 * @exporter: export
 *
 * Never waits for a peer. Call it when gmem_export_fd() is readable. A removal or
 * conversion that takes memory back exchanges its messages with peers itself.
 *
 * It returns after about 10 ms, whatever there is to do; the fd stays readable as
 * long as something is left. Peers take turns.
 *
 * Thread-safe. Source: sendmsg(2), recvmsg(2), timerfd_settime(2). Since: 0.1.
 *
 * Return: 0, or -ESTALE after gmem_vm_free(), -EINVAL for NULL.
 */
GMEM_API int gmem_export_dispatch(struct gmem_export *exporter);

/* --------------------------------------------------------------- imports -- */

/* Flags of struct gmem_import_opts */
#define GMEM_IMPORT_UNSEALED	(1ull << 0) /* accept files that can shrink */

/**
 * struct gmem_import_opts - limits of an import
 * @size: sizeof this struct; GMEM_OPTS() fills it in
 * @flags: GMEM_IMPORT_*; unknown bits are -EINVAL. In a file that can shrink a
 *	load or store can raise SIGBUS at any time.
 * @max_bytes: maximum of bytes to map; 0: only the kernel's limit
 * @max_extents: maximum of extents to map; 0: 4096
 * @reserved: must be 0
 * @max_table_bytes: maximum of this process's own memory for what is mapped, with
 *	pages of 4 KiB about 1/28000 of it, and 20 KiB for each extent; 0: 128 MiB
 * @max_mappings: maximum of mappings, as the kernel counts them: one for each run of
 *	pages that are granted, or that are not, and one for marks; 0: a quarter of the process's limit,
 *	/proc/sys/vm/max_map_count, or of 65530 if that cannot be read
 * @reserved2: must be 0
 *
 * What exceeds a limit is refused, the exporting process is told, and nothing
 * changes here. It is told ENOSPC, and then gives the import up, or, for
 * max_mappings, ENOMEM, and then offers the memory again and again. A guest that
 * converts many small ranges makes many mappings, too.
 */
struct gmem_import_opts {
	size_t   size;
	uint64_t flags;
	uint64_t max_bytes;
	uint32_t max_extents;
	uint32_t reserved;
	uint64_t max_table_bytes;
	uint32_t max_mappings;
	uint32_t reserved2;
};

/**
 * gmem_import_new() - get memory from a process that exports it
 * @sock: a connected AF_UNIX socket of type SOCK_SEQPACKET, duplicated
 * @opts: NULL for defaults
 * @ret: the import, yours to free with gmem_import_free()
 *
 * The import is empty at first: memory comes with gmem_import_dispatch(). It needs
 * no KVM, no /proc and no file system. It has three file descriptors, and needs one
 * more for a moment whenever an extent comes, or a map for marks.
 *
 * Thread-safe. Source: unix(7), SCM_RIGHTS, eventfd(2), epoll(7). Since: 0.1.
 *
 * Return: 0, or -EINVAL bad options, or another kind of socket, -EBADF @sock is
 * not open, -ENOTSOCK it is no socket, -E2BIG options newer than the library, -EMFILE, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_import_new(int sock, const struct gmem_import_opts *opts,
					  struct gmem_import **ret);

/**
 * gmem_import_free() - unmap all memory and close the connection
 * @import: import, or NULL
 *
 * Views need not be freed before: what they look up from now on is -ESTALE. The call waits
 * for a second for those between gmem_view_begin() and gmem_view_end(). If one is there for
 * longer, the connection is closed all the same, but the memory stays mapped until that
 * view is freed, as for gmem_vm_free(); an import has no log to tell so.
 *
 * One thread at a time per object; different objects in parallel. Since: 0.1.
 */
GMEM_API void gmem_import_free(struct gmem_import *import);

/**
 * gmem_import_fd() - fd to poll for an import
 * @import: import
 *
 * The fd is readable when gmem_import_dispatch() has something to do; when that has
 * returned an error, never more. It is borrowed: do not read from it.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: an fd for poll(2) and the like, or -EINVAL for NULL.
 */
GMEM_API int gmem_import_fd(const struct gmem_import *import);

/**
 * gmem_import_dispatch() - handle messages of the exporting process, and answer them
 * @import: import
 *
 * Maps and unmaps memory, and gives and takes access to it. A call does about 10 ms
 * of that, whatever the messages ask for: the next call goes on. Before memory is
 * taken it also waits, as long as they last, for views between gmem_view_begin() and
 * gmem_view_end(), so do not call it between these. The exporting process waits for
 * the answer: call this soon after gmem_import_fd() is readable.
 *
 * An extent is mapped once, when it comes; no other mapping gets into its place until
 * it is unmapped. Ranges that are not granted cannot be accessed (PROT_NONE). Of a
 * large extent views have some before gmem_import_table() has it.
 *
 * After an error no more memory comes, and mapped memory stays mapped until
 * gmem_import_free().
 *
 * Thread-safe. Source: unix(7), mmap(2), mprotect(2), munmap(2). Since: 0.1.
 *
 * Return: 1 if the import has all memory it should have, 0 if more is to come; or
 * -EPIPE the exporting process is gone, -EPROTO it broke the protocol or has pages
 * of another size, -ENOMEM in the middle of a large range, which can then neither be
 * finished nor undone, or for memory that the kernel refuses to unmap (munmap(2)),
 * -EINVAL for NULL.
 */
GMEM_API int gmem_import_dispatch(struct gmem_import *import);

/**
 * gmem_import_wait() - serve the exporting process until an fd is readable
 * @import: import
 * @fd: fd to wait for, such as a device's doorbell; borrowed. -1: none
 * @ms: milliseconds to wait; 0: only look, below 0: no limit
 *
 * Does what gmem_import_dispatch() does whenever gmem_import_fd() is readable, so a device
 * process needs no loop of its own. One dispatch comes before this returns for @fd. If the
 * exporting process waits for more than it does at once, some 10 ms of unmapping,
 * gmem_import_fd() is readable still: call again before you work for long, or the
 * removal waits for you. Once the import has ended, every call returns why, in all
 * threads. Signals do not end the wait.
 *
 * Thread-safe, and as gmem_import_dispatch() not to be called between gmem_view_begin()
 * and gmem_view_end(). Source: poll(2). Since: 0.1.
 *
 * Return: 1 @fd is readable, or its other end is gone; 0 the time is over; or the errors
 * of gmem_import_dispatch(), -EBADF @fd is not open.
 */
GMEM_API int gmem_import_wait(struct gmem_import *import, int fd, int ms);

/**
 * gmem_import_table() - get the memory that is mapped
 * @import: import
 * @extents: filled in GPA order, without an fd; untouched on failure
 * @max: entries in @extents
 *
 * Thread-safe; each hva may be used only through views. Since: 0.1.
 *
 * Return: number of extents filled in, or -ENOSPC there are more than @max,
 * -EINVAL NULL argument.
 */
GMEM_API int gmem_import_table(struct gmem_import *import, struct gmem_extent *extents,
			       size_t max);

/**
 * gmem_import_view_new() - create a view of imported memory
 * @import: import
 * @ret: the view, for one thread at a time; yours to free with gmem_view_free()
 *
 * All functions of views work with it. They return -ESTALE for memory that was
 * taken back because its region was removed, and -EACCES because it became private.
 * Call gmem_recovery_enable() first, so that mistakes of either process do not end
 * this one.
 *
 * While the exporting process tracks which pages change, what the view writes is marked in a
 * map shared with it, which costs 1/4096 of that, beside the limits of struct gmem_import_opts.
 * If the system has no page left for the map, SIGBUS ends this process, as for memory of its own.
 * What you write through host addresses you mark yourself, gmem_view_mark_dirty(), before
 * gmem_view_end(). So do children of fork(2), in the map that was there at the fork: one that
 * was forked before there was a map, or before the exporter made a larger one because memory
 * was added at higher addresses, marks nothing that counts.
 *
 * Thread-safe. Since: 0.1.
 *
 * Return: 0, or -EINVAL NULL argument, -ENOMEM.
 */
GMEM_API GMEM_CHECKED int gmem_import_view_new(struct gmem_import *import,
					       struct gmem_view **ret);

#ifdef __cplusplus
}
#endif

#endif /* GMEM_H */
