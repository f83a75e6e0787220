/* SPDX-License-Identifier: MIT */
/* Declarations that the files of the fake share. Tests include fake.h only. */
#ifndef GMEM_FAKE_INTERNAL_H
#define GMEM_FAKE_INTERNAL_H

#include <sys/resource.h>

#include "fake.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/ring.h"
#include "os/sys.h"

#define MAX_FDS		1024
#define MAX_SLOTS	32768		/* in each of the address spaces */
#define SPACES		2
#define TRACKED_PAGES	4096
#define DIRTY_SLOTS	64		/* of which dirty pages are kept, and their words */
#define DIRTY_WORDS	4
#define ADDRESS_END	((uint64_t)1 << 47)	/* of user space */

/* Sorted intervals, for slots by gpa and for bound ranges by file offset */
struct span {
	uint64_t start;
	uint64_t end;
	uint32_t number;
};

struct spans {
	struct span *v;
	size_t count;
	size_t room;
};

struct vm {
	struct vm *next;
	int id;
	int first_fd;
	unsigned fds;
	unsigned files;
	bool dead;
	bool is_librarys;		/* made by the library, to try things in */
	bool private_memory;
	bool binds;
	uint64_t legal_flags;
	struct fake_caps caps;
	struct spans privates;		/* gpas with the attribute, number 0 */
	struct spans by_gpa;		/* by span_of_gpa() */
	struct fake_slot *slots;	/* by slot_index(); size 0: none */
	uint64_t dirty[SPACES][DIRTY_SLOTS][DIRTY_WORDS];
	bool clears_by_hand;		/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
	enum fake_ring ring;
};

/* A memslot's number has its address space above the lowest 16 bits. */
static inline uint32_t slot_index(uint32_t number)
{
	return (number >> 16) * MAX_SLOTS + (number & 0xffff) % MAX_SLOTS;
}

/* What the address spaces have at one address does not overlap. */
static inline uint64_t span_of_gpa(uint32_t number, uint64_t gpa)
{
	return (uint64_t)(number >> 16) << 62 | gpa;
}

/* A NUMA policy: a MPOL_* and its nodes */
struct policy {
	int mode;
	uint64_t nodes;
};

struct file {
	struct file *next;
	struct vm *vm;
	int id;
	unsigned refs;			/* fds and mappings */
	uint64_t flags;
	uint64_t size;
	struct spans bound;
	struct spans privates;		/* offsets with the attribute, number 0 */
	uint64_t pinned;
	unsigned pinned_times;
	uint8_t hidden[2];		/* guest's bytes in memory the host cannot read */
	uint8_t allocated[TRACKED_PAGES];
	uint8_t node[TRACKED_PAGES];
	struct policy policies[TRACKED_PAGES];
};

struct vcpu {
	struct kvm_run *run;
	uint64_t pc;
	uint8_t al;
	bool has_registers;
	struct gmem_kvm_dirty_entry *ring;	/* one page; NULL: there is none */
	uint32_t ring_at, ring_reset;	/* entries that were entered, and that are free again */
};

enum kind { CLOSED = 0, OTHER, KVM, VM, VCPU, GMEM };

struct handle {
	enum kind kind;
	bool cloexec;
	struct vm *vm;
	struct file *file;
	struct vcpu *vcpu;
};

struct mapping {
	uint64_t start;
	uint64_t size;
	uint64_t offset;
	struct file *file;	/* NULL: anonymous, or a vCPU */
	int prot;
};

struct fake_state {
	struct vm *vms;
	struct file *files;
	int last_id;
	struct handle fds[MAX_FDS];
	struct mapping *maps;
	size_t map_count;
	size_t map_room;
	unsigned counts[FAKE_CALLS];
	unsigned complaints;
	unsigned interrupt_times;
	uint64_t huge_inode, huge_page_size;	/* a file that passes for one of hugetlbfs */
	uint64_t interrupt_pages;
	size_t max_written;
	uint64_t populated_start;	/* the last range of a file that was mapped in whole */
	uint64_t populated_end;
	uint64_t unmapped_start;	/* pages that the page tables do not have */
	uint64_t unmapped_end;
	uint64_t prefault_most;		/* pages in one call; 0: all */
	unsigned prefault_interruptions;
	bool races;			/* a page is touched just before mbind() */
	uint8_t node;			/* node of pages that are touched, or allocated without a policy */
	uint64_t io_most;
	uint64_t limits[RLIM_NLIMITS];	/* RLIMIT_*; see fake_set_limit() */
	bool files_are_cached;
	uint32_t ring_entries;		/* of the caller's ring; 0: the most there are */
	uintptr_t orphans[64];		/* buffers of requests whose ring was closed */
	unsigned orphan_count;
	uint64_t last_random;
	enum fake_direct direct;
};

extern struct fake_state kernel;

/* ---- fake.c ---- */

/* Around everything that looks at or changes the state; leave() returns @ret */
void enter(void);
int leave(int ret);
/* Every call that can fail passes here: it is counted, and may have to */
int attempt(enum fake_call call);
struct gmem_fd_access real_access(int fd);
/* The same without the count */
int fate(enum fake_call call);
void complain(const char *what, int number);
void *must(void *p);

bool is_open(int fd);
bool is_aligned(uint64_t value);
struct handle *handle_of(int fd);
struct handle *open_handle(int fd, enum kind kind, struct vm *vm, struct file *file);
/* The VM of an fd, also of one that was closed */
struct vm *vm_of(int fd);
void file_put(struct file *file);

/* index of the first that ends after @start */
size_t span_at(const struct spans *s, uint64_t start);
bool span_overlaps(const struct spans *s, uint64_t start, uint64_t end, uint32_t except);
void span_add(struct spans *s, uint64_t start, uint64_t end, uint32_t number);
void span_remove(struct spans *s, uint64_t start, uint32_t number);
/* All of [start, end) in it, as one with what touches it, or nothing of it */
void span_set(struct spans *s, uint64_t start, uint64_t end, bool in);
bool span_has(const struct spans *s, uint64_t at);

/* ---- fake_kvm.c ---- */

struct slot_args {
	bool is_v2;
	uint32_t number;
	uint32_t flags;
	uint64_t gpa;
	uint64_t size;
	uint64_t hva;
	uint64_t offset;
	int fd;
};

int create_vm(uint64_t type);
int create_gmemfd(struct vm *vm, const struct gmem_kvm_create_guest_memfd *args);
int set_slot(struct vm *vm, const struct slot_args *args);

/* ---- fake_guest.c ---- */

int create_vcpu(struct vm *vm);
int reset_dirty_rings(struct vm *vm);
int vcpu_ioctl(struct handle *h, unsigned long request, void *arg);

/* ---- fake_numa.c ---- */

uint8_t node_to_allocate(const struct file *file, uint64_t page);
/* [start, end) is unmapped, or mapped anew */
void forget_policies(uint64_t start, uint64_t end);

/* ---- fake_io.c ---- */

/* [start, end) is unmapped: no request may still use it. */
void check_no_request(uint64_t start, uint64_t end);

/* ---- fake_proc.c ---- */

void forget_marks(void);
/* An fd of /proc/self/maps or smaps as the fake tells them, or -ENOENT */
int open_mappings(const char *path);
/* Is advice for pages in lists refused there? */
bool refuses_cold(uint64_t addr);
bool is_seen_mapped(uint64_t addr);

/* ---- fake_mm.c ---- */

/* May the host load and store what is in the file? */
bool is_host_accessible(const struct file *file);
const struct mapping *map_at(uint64_t addr);
void mark_allocated(struct file *file, uint64_t first, uint64_t count, bool yes);
void map_delete(size_t i);

#endif
