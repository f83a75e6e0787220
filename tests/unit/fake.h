/* SPDX-License-Identifier: MIT */
/*
 * A scripted kernel behind the prototypes of lib/os/sys.h.
 *
 * It keeps the rules of a kernel chosen from a table (fake_kernels), counts
 * every call, fails any of them on request, and can be photographed, so that a
 * test can say "this call changed nothing". Fake fds are real fds and fake
 * mappings real mappings: what the library leaks is really leaked.
 */
#ifndef GMEM_FAKE_H
#define GMEM_FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* statfs(2) f_type of anonymous inodes: guest_memfd before Linux 6.19 */
#define FAKE_ANON_INODE_MAGIC	0x09041934
/* guest_memfd since Linux 6.19 */
#define FAKE_GMEM_MAGIC		0x474d454d

/* The answers of KVM_CHECK_EXTENSION */
struct fake_caps {
	int user_memory2;
	int memory_fault_info;
	int memory_attributes;
	int guest_memfd;
	int vm_types;
	int pre_fault;
	int create_flags;
	int memslots;
	int address_spaces;
	int readonly;
};

/* The memory that a guest's loads and stores reach when a file is bound */
enum fake_guest {
	FAKE_GUEST_BY_FLAGS = 0,	/* the file if it has MMAP, else the memory at the hva */
	FAKE_GUEST_USES_HVA,
	FAKE_GUEST_STORES_TO_HVA,	/* loads go by flags */
};

/* One kernel with one type of VM on it */
struct fake_kernel {
	const char *name;
	struct fake_caps kvm;		/* answers of /dev/kvm */
	struct fake_caps vm;		/* answers of a VM of @vm_type */
	uint64_t vm_type;
	uint64_t page_size;
	uint64_t legal_flags;		/* create flags that KVM_CREATE_GUEST_MEMFD takes */
	uint64_t filesystem_type;	/* of a guest_memfd */
	uint64_t clock_step;		/* nanoseconds that pass, beside the true ones, with each look at the clock */
	const char *link;		/* of a guest_memfd in /proc/self/fd */
	int api_version;		/* 0: KVM_API_VERSION */
	int kvm_errno;			/* result of opening /dev/kvm; 0: an fd */
	int unknown_ioctl;		/* result of an ioctl it lacks on a VM fd */
	int beyond_address_bits;	/* result for a memslot past @address_bits */
	int file_overlap;		/* result of binding bound pages again */
	int io_uring;			/* result of io_uring_setup(2) */
	unsigned long inplace_request;	/* sets attributes of a guest_memfd; 0: there is none */
	unsigned address_bits;
	unsigned nodes;			/* NUMA nodes; 0: no /sys */
	enum fake_guest guest;
	bool inplace_is_hollow;		/* it reports success and does nothing */
	bool arm64;
	bool has_create;		/* also where every bind is refused */
	bool binds;
	bool bind_needs_mmap;
	bool private_memory;
	bool mmap_is_shared;		/* MMAP alone makes pages shared */
	bool no_proc;
	bool no_map_files;		/* /proc/self/map_files is for privileged processes */
	bool no_mapping_query;		/* PROCMAP_QUERY, before Linux 6.11 */
	bool no_page_scan;		/* PAGEMAP_SCAN, before Linux 6.7 */
	bool no_cachestat;
	bool no_same_file;		/* it does not tell whether two fds are one open file */
	bool no_numa;
	bool no_move_pages;
	bool forgets_policy;		/* mbind() succeeds and reaches the mapping alone */
	bool memfd_noexec;		/* vm.memfd_noexec is 2 */
	bool cannot_unmap;		/* neighbours are one mapping, and there are too many: -ENOMEM */
	bool mincore_hides;		/* mincore() says "in memory" of all pages to all but a file's owner */
};

extern const struct fake_kernel fake_kernels[];
extern const size_t fake_kernel_count;

/* The running kernel; a test may change it between calls */
extern struct fake_kernel fake;

/* Boot a kernel of the table; ends the one before */
void fake_boot(const char *name);
void fake_boot_kernel(const struct fake_kernel *kernel);
/* Give the kernel's pages another size. */
void fake_set_page_size(uint64_t page_size);
/* Close and unmap what is left. Returns the number of things left over. */
unsigned fake_halt(void);

/* A VM of the kernel's vm_type, as a VMM would have made it; an fd */
int fake_new_vm(void);
/* Other fds that a VMM has open: /dev/kvm, a vCPU, a raw guest_memfd */
int fake_new_kvm(void);
int fake_new_vcpu(int vm_fd);
int fake_new_gmemfd(int vm_fd, uint64_t size, uint64_t flags);
void fake_close(int fd);
/* From now on every ioctl of the VM is -EIO: it is dead, or another process's */
void fake_kill_vm(int vm_fd);

/* ---- what happened ---- */

/* The system calls, and those ioctls that tests tell apart */
enum fake_call {
	FAKE_OPEN,
	FAKE_DUP,
	FAKE_SET_CLOEXEC,
	FAKE_MMAP,
	FAKE_MUNMAP,
	FAKE_MPROTECT,
	FAKE_MADVISE,
	FAKE_FALLOCATE,
	FAKE_MEMFD,
	FAKE_RESIZE,
	FAKE_SEAL,
	FAKE_MINCORE,
	FAKE_CACHESTAT,
	FAKE_PAGEMAP,
	FAKE_FIND_ABSENT,
	FAKE_FIND_MAPPED,
	FAKE_MAPPING_AT,
	FAKE_TRY_READ,
	FAKE_OPEN_MAPPED,
	FAKE_WRITE,
	FAKE_MBIND,
	FAKE_GET_MEMPOLICY,
	FAKE_GET_AFFINITY,
	FAKE_SET_AFFINITY,
	FAKE_QUERY_PAGES,
	FAKE_FD_KIND,
	FAKE_REOPEN,
	FAKE_READ_AT,
	FAKE_READ_CACHED,
	FAKE_WRITE_AT,
	FAKE_FIND_DATA,
	FAKE_DATASYNC,
	FAKE_POLL,
	FAKE_RING_NEW,
	FAKE_RING_SUBMIT,
	FAKE_RING_RESULT,
	FAKE_RING_CANCEL,
	FAKE_FILE_SIZE,
	FAKE_FILESYSTEM_TYPE,
	FAKE_FACTS,
	FAKE_ACCEPT,
	FAKE_SEND,
	FAKE_RECEIVE,
	FAKE_RECEIVE_FD,
	FAKE_EVENT,
	FAKE_TIMER,
	FAKE_EPOLL,
	FAKE_POLL_MANY,
	FAKE_FD_LINK,
	FAKE_READ_FILE,
	FAKE_IO_URING,
	FAKE_MEMBARRIER,
	FAKE_CHECK_EXTENSION,
	FAKE_CREATE_VM,
	FAKE_CREATE_GMEMFD,
	FAKE_SET_SLOT,		/* KVM_SET_USER_MEMORY_REGION with a size */
	FAKE_SET_SLOT2,		/* KVM_SET_USER_MEMORY_REGION2 with a size */
	FAKE_DELETE_SLOT,
	FAKE_RUN,
	FAKE_SET_ATTRIBUTES,
	FAKE_PRE_FAULT,
	FAKE_OTHER_IOCTL,
	FAKE_CALLS
};

const char *fake_call_name(enum fake_call call);
/* Calls since boot that can fail, of one kind or of all */
unsigned fake_count(enum fake_call call);
unsigned fake_count_all(void);
/* Things a correct program never does: closing a foreign fd, losing a bound file */
unsigned fake_complaints(void);

/* ---- failure ---- */

/*
 * The @n-th call from now, 1 being the next, fails with @err (negative). Calls
 * that cannot fail do not count: close, and unmapping a whole mapping.
 */
void fake_fail_call(unsigned n, int err);
/* Let @skip calls of one kind pass, then fail @count of them. */
void fake_fail_kind(enum fake_call call, unsigned skip, unsigned count, int err);
void fake_fail_next(enum fake_call call, int err);
/* Let @skip calls pass, fail the next one, and then one in @one_in. */
void fake_fail_at_random(unsigned skip, unsigned one_in, uint64_t seed);
/* Did any of it strike since it was asked for? Clears what did not. */
bool fake_fail_struck(void);
/* The call that was struck last */
enum fake_call fake_fail_victim(void);

/*
 * The next @times fallocate() calls end with -EINTR after @pages pages, as if
 * a signal arrived; a call of fewer pages finishes.
 */
void fake_interrupt(unsigned times, uint64_t pages);

/* The file behind this fd, and its duplicates, passes for one of hugetlbfs with pages of @page_size. */
void fake_pretend_huge(int fd, uint64_t page_size);

/* From now on write() takes at most so many bytes at once; 0: what the fd takes */
void fake_shorten_writes(size_t most);

/* No KVM_PRE_FAULT_MEMORY does more than so many pages, 0: all; the next @times end with -EINTR */
void fake_limit_prefault(uint64_t pages, unsigned times);

/*
 * From now on process_vm_readv() is refused with @err (negative), as a seccomp
 * filter does; 0: no longer. It is not among the calls that are counted: readers
 * make it, who share no lock.
 */
void fake_refuse_copies(int err);
uint64_t fake_copies(void);
/* Called before each process_vm_readv(); NULL: no longer */
extern void (*fake_before_copy)(void);

/* From now on membarrier() is refused with @err; 0: no longer. fake_boot() ends it, too. */
void fake_refuse_membarrier(int err);

/* From now on no read or write does more than @most bytes at a time; 0: all it can. */
void fake_shorten_io(uint64_t most);

/* O_DIRECT is refused by open(), has the rules of a disk, or has no effect */
enum fake_direct { FAKE_DIRECT_NEVER = 0, FAKE_DIRECT_DISK, FAKE_DIRECT_LIE };
void fake_set_direct(enum fake_direct direct);

/* The next completion on the caller's ring */
bool fake_take_completion(uint64_t *ret_tag, int *ret_result);
/* From now on the caller's rings have so many entries, at most and at first 256. */
void fake_set_ring_entries(uint32_t entries);
/* A request of another user of the caller's ring; false: the queue is full */
bool fake_queue_foreign(void);

/* From now on files that are not guest_memfds are in the page cache. */
void fake_cache_files(void);

/*
 * What happens to a mapping without the library: from now on the page tables have none of the
 * pages in a range, whether these exist or not. The last range counts; fake_boot() forgets it.
 */
void fake_unmap_pages(const void *hva, uint64_t size);
/* Called after each look at the page tables; NULL: no longer */
extern void (*fake_after_look)(void);

/* From now on RLIMIT_FSIZE is @limit; at first there is none, which is UINT64_MAX. */
/* A limit of the process, RLIMIT_*; UINT64_MAX, as at first: none */
void fake_set_limit(int resource, uint64_t limit);

/* The processors threads may use; those the last call took, and if this thread made it */
void fake_set_cpus(uint64_t cpus);
uint64_t fake_last_affinity(bool *ret_is_ours);

/*
 * What /proc says of the mappings in a range, beside what they are: the size of their pages,
 * the VmFlags of smaps ("um lo"), and bytes in swap. fake_boot() forgets it. Advice that the
 * kernel refuses there (MADV_COLD) is refused, and what userfaultfd owes ("um") is -EIO to
 * gmem_sys_try_read().
 */
void fake_mark_mapping(const void *hva, uint64_t size, uint64_t page_size, const char *flags,
		       uint64_t swap);

/* The advice of the last madvise() */
int fake_last_advice(void);

/* True while the fake itself runs: its allocations are not the library's */
bool fake_is_running(void);

/*
 * From now on a small file has these contents, kept by the test; NULL: there is
 * none. fake_boot() forgets them. Without contents, only files of NUMA nodes can be read.
 */
void fake_set_file(const char *path, const char *contents);

/*
 * Send a packet with @fds copies of one fd, at most 8, as a process may that knows
 * nothing of the library. What sendmsg() returns; it neither blocks nor raises SIGPIPE.
 */
ssize_t fake_send_packet(int sock, const void *bytes, size_t size, unsigned fds, int fd);

/* ---- state ---- */

struct fake_snapshot;

/* Open fds with their close-on-exec, memslots and attributes of all VMs, mappings */
struct fake_snapshot *fake_snapshot(void);
/* Does the state equal the snapshot? Prints the difference if not. Frees it. */
bool fake_equal(struct fake_snapshot *snapshot);
void fake_forget(struct fake_snapshot *snapshot);

/* One memslot as the kernel holds it */
struct fake_slot {
	uint32_t number;
	uint32_t flags;
	uint64_t gpa;
	uint64_t size;
	uint64_t hva;
	uint64_t offset;
	int file;		/* identity of the guest_memfd, 0 for none */
};

/* By number; false if there is none. The VM may be known by a closed fd. */
bool fake_get_slot(int vm_fd, uint32_t number, struct fake_slot *ret);
unsigned fake_slot_count(int vm_fd);
/* Has this guest address the attribute? */
bool fake_is_private(int vm_fd, uint64_t gpa);
/* The same of an offset in a guest_memfd */
bool fake_is_file_private(int fd, uint64_t offset);
/* The next @times such calls that touch this offset are -EAGAIN: somebody has it pinned. */
void fake_pin(int fd, uint64_t offset, unsigned times);
/* Set it, or take it away, behind the library's back */
void fake_set_private(int vm_fd, uint64_t gpa, uint64_t size, bool is_private);
/* Add one behind the library's back */
int fake_add_slot(int vm_fd, uint32_t number, uint64_t gpa, uint64_t size);

/* The guest writes this page of the slot; kept for the first 256 pages of the slots 0 to 63 */
void fake_write_page(int vm_fd, uint32_t number, uint64_t page);
/* As a VMM does: from now on KVM_GET_DIRTY_LOG clears nothing */
void fake_clear_log_by_hand(int vm_fd);
/* As a VMM does: dirty rings, alone or beside the bitmaps */
enum fake_ring { FAKE_RING_NONE = 0, FAKE_RING_ALONE, FAKE_RING_AND_BITMAP };
void fake_set_dirty_ring(int vm_fd, enum fake_ring ring);
/* The vCPU, which was made after that, enters a page in its ring of one page; false: it is full */
bool fake_push_dirty(int vcpu_fd, uint32_t slot, uint64_t page);
/* Entries that KVM has not got back */
unsigned fake_ring_used(int vcpu_fd);

/*
 * The guest stores to a page: the memslot that has it, for KVM to log; false if there is none.
 */
bool fake_guest_stores(int vm_fd, uint64_t gpa, struct fake_slot *ret);
/* Called before each ioctl that sets or deletes a memslot; NULL: no longer */
extern void (*fake_before_slot)(void);

/* Is the VM that was once behind this fd still there? */
bool fake_vm_exists(int vm_fd);
/* Identity of the guest_memfd behind an fd or an address, 0 for none */
int fake_file_of_fd(int fd);
int fake_file_at(const void *hva, uint64_t *ret_offset);
/* Protection of the mapping at an address, -1 for none */
int fake_protection_at(const void *hva);
/* Are all pages of a range allocated? Kept for the first 4096 of a file. */
bool fake_is_allocated(int fd, uint64_t offset, uint64_t size);
/* The node of the files' pages that are allocated from now on without a policy, and of touches */
void fake_set_node(unsigned node);
/* From now on the first page of a file's mapping is touched just before mbind() has an effect */
void fake_race_mbind(bool yes);
/* The policy the file's page, or the mapping's, has: a MPOL_*, and its first word of nodes */
int fake_policy_of_file(int fd, uint64_t offset, uint64_t *ret_nodes);
int fake_policy_at(const void *hva, uint64_t *ret_nodes);
unsigned fake_open_fds(void);
unsigned fake_open_mappings(void);

#endif
