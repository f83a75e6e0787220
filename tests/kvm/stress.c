/* SPDX-License-Identifier: MIT */
/*
 * vCPUs and views that use memory while its layout changes under them. For a
 * few seconds, or for GMEM_STRESS_SECONDS in each test.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "lab.h"

#define DEFAULT_SECONDS 3

#define WAY(backing) (1u << (backing))

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t stress_ms(void)
{
	const char *text = getenv("GMEM_STRESS_SECONDS");
	unsigned long seconds = text ? strtoul(text, NULL, 10) : 0;

	return 1000 * (seconds ? seconds : DEFAULT_SECONDS);
}

/* xorshift64: the same in every run */
static uint32_t pick(uint64_t *state, uint32_t count)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (uint32_t)(*state >> 16) % count;
}

/* each of @count kinds once, however slow the machine, then at random */
static uint32_t next_change(uint32_t done, uint64_t *state, uint32_t count)
{
	return done < count ? done : pick(state, count);
}

static unsigned int count_ways(void)
{
	unsigned int count = 0;

	for (int type = DEFAULT_VM; type <= PRIVATE_VM; type++) {
		if (expect_vm(type)->exists)
			count += (unsigned int)__builtin_popcount(expect_vm(type)->backings);
	}
	return count;
}

/* in every kind of VM, with each way of backing that it has, each for its part of the time */
static void for_each_way(void (*run)(int type, uint32_t backing, uint64_t ms))
{
	uint64_t ms = stress_ms() / count_ways();

	for (int type = DEFAULT_VM; type <= PRIVATE_VM; type++) {
		for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_PRIVATE; backing++) {
			if (!expect_vm(type)->exists || !(expect_vm(type)->backings & WAY(backing)))
				continue;
			in_case("%s memory, VM type %d", gmem_backing_name(backing), type);
			run(type, backing, ms);
		}
	}
}

/* ---- memory that outlives the regions it is behind ---- */

struct stock {
	struct gmem_file *file;		/* or, for host memory, NULL */
	char *hva;			/* the host's own mapping; NULL: it has none */
	uint64_t size;
	struct gmem_plan *plan;
};

static void stock_new(struct stock *stock, struct machine *m, uint32_t backing, uint64_t size)
{
	*stock = (struct stock){ .size = size };
	require_backing(m, backing, &stock->plan);
	if (backing != GMEM_BACKING_HOST)
		OK(gmem_file_new(m->vm_fd, size, stock->plan, &stock->file));
	if (backing == GMEM_BACKING_MAPPED || backing == GMEM_BACKING_SHARED) {
		stock->hva = map_file(stock->file);
	} else {
		/* host memory, or the shared side of private memory */
		stock->hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
				  0);
		CHECK(stock->hva != MAP_FAILED);
	}
}

static bool stock_is_mapped_file(const struct stock *stock)
{
	return gmem_plan_backing(stock->plan) == GMEM_BACKING_MAPPED ||
	       gmem_plan_backing(stock->plan) == GMEM_BACKING_SHARED;
}

static void stock_free(struct stock *stock)
{
	if (!stock_is_mapped_file(stock))
		munmap(stock->hva, stock->size);
	gmem_file_free(stock->file);
	gmem_plan_free(stock->plan);
}

/* options for a region over the part of @stock that begins at @offset */
static struct gmem_region_opts stock_opts(const struct stock *stock, uint64_t offset)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = stock->plan, .file = stock->file);

	if (stock->file)
		opts.file_offset = offset;
	if (!stock_is_mapped_file(stock)) {
		opts.flags = GMEM_REGION_HVA;
		opts.hva = stock->hva + offset;
	}
	return opts;
}

static struct gmem_region *stock_add(struct gmem_vm *vm, const struct stock *stock, uint64_t gpa,
				     uint64_t offset, uint64_t size)
{
	struct gmem_region_opts opts = stock_opts(stock, offset);
	struct gmem_region *region = NULL;

	OK(gmem_region_add(vm, gpa, size, &opts, &region));
	return region;
}

/* ---- vCPUs that walk memory ---- */

/*
 * The guest's program, without paging. It goes through a window in steps; each
 * word there must be what the pass before left, and becomes one more. All bits
 * set mean that there is no memory: look again. A store that found no memory
 * is noticed by looking, and done again. A pass is reported, and so is a word
 * that is wrong.
 */
extern const char walk_begin[] __attribute__((visibility("hidden")));
extern const char walk_end[] __attribute__((visibility("hidden")));

#ifdef __x86_64__

#define PASS_PORT 0x10
#define WRONG_PORT 0x11

__asm__(".pushsection .rodata\n"
	".globl walk_begin, walk_end\n"
	".hidden walk_begin, walk_end\n"
	".code32\n"
	"walk_begin:\n"
	"1:	mov %esi, %ebx\n"	/* esi: begin, edi: end, ebp: step, ecx: wanted */
	"2:	mov (%ebx), %eax\n"
	"	cmp $-1, %eax\n"
	"	je 2b\n"
	"	cmp %ecx, %eax\n"
	"	jne 9f\n"
	"	lea 1(%ecx), %edx\n"
	"3:	mov %edx, (%ebx)\n"
	"4:	mov (%ebx), %eax\n"
	"	cmp $-1, %eax\n"
	"	je 4b\n"
	"	cmp %ecx, %eax\n"
	"	je 3b\n"
	"	cmp %edx, %eax\n"
	"	jne 9f\n"
	"	add %ebp, %ebx\n"
	"	cmp %edi, %ebx\n"
	"	jb 2b\n"
	"	inc %ecx\n"
	"	out %eax, $0x10\n"
	"	jmp 1b\n"
	"9:	out %eax, $0x11\n"
	"	hlt\n"
	"walk_end:\n"
	".code64\n"
	".popsection\n");

#else

#define REPORT_GPA ((uint64_t)0x20000)	/* no memory there */
#define WRONG_OFFSET 8

__asm__(".pushsection .rodata\n"
	".globl walk_begin, walk_end\n"
	".hidden walk_begin, walk_end\n"
	"	.balign 4\n"
	"walk_begin:\n"
	"1:	mov x5, x0\n"		/* x0: begin, x1: end, x2: report, w3: wanted, x4: step */
	"2:	ldr w6, [x5]\n"
	"	cmn w6, #1\n"
	"	b.eq 2b\n"
	"	cmp w6, w3\n"
	"	b.ne 9f\n"
	"	add w7, w3, #1\n"
	"3:	str w7, [x5]\n"
	"4:	ldr w6, [x5]\n"
	"	cmn w6, #1\n"
	"	b.eq 4b\n"
	"	cmp w6, w3\n"
	"	b.eq 3b\n"
	"	cmp w6, w7\n"
	"	b.ne 9f\n"
	"	add x5, x5, x4\n"
	"	cmp x5, x1\n"
	"	b.lo 2b\n"
	"	mov w3, w7\n"
	"	str w6, [x2]\n"
	"	b 1b\n"
	"9:	str w6, [x2, #8]\n"
	"	b .\n"
	"walk_end:\n"
	".popsection\n");

#endif

/*
 * Each vCPU walks pages of its own, between those of the other, so far apart
 * that KVM does not map them together (8 pages, with shadow paging). KVM of 7.3
 * warns, harmlessly, when a vCPU still deals with a hole where another one has
 * got the page already that was just put there.
 */
#define VCPUS 2
#define PAGES_APART 8
#define CODE_GPA ((uint64_t)0x10000)
#define WINDOW (256 * MIB)
#define ELSEWHERE (512 * MIB)
#define PIECES 2
#define PIECE_PAGES (4 * VCPUS * PAGES_APART)

struct walker {
	struct walk *walk;
	unsigned int number;
	int vcpu_fd;
	struct kvm_run *run;
	uint64_t run_size;
	pthread_t thread;
	_Atomic uint64_t passes;
	/* how often it met what, besides memory */
	uint64_t mmio, memory_faults, bare_faults;
};

/* A VM whose vCPUs walk PIECES adjacent regions, and their memory */
struct walk {
	struct machine m;
	struct gmem_vm *vm;
	void *code;
	struct stock stock;
	uint64_t page, piece;		/* sizes */
	struct gmem_region *regions[PIECES];
	struct walker walkers[VCPUS];
	atomic_bool stop;
	uint64_t random;
	unsigned int changes;
	bool is_private;		/* the guest's words are on the private side */
};

#ifdef __x86_64__

static void init_walker(struct walker *walker, uint64_t begin, uint64_t end, uint64_t step)
{
	const struct kvm_regs regs = {
		.rip = CODE_GPA, .rsi = begin, .rdi = end, .rbp = step, .rflags = 2,
	};
	struct kvm_segment flat = { .limit = 0xffffffff, .g = 1, .db = 1, .s = 1, .present = 1 };
	struct kvm_sregs sregs;

	WORKS(ioctl(walker->vcpu_fd, KVM_GET_SREGS, &sregs));
	flat.type = 3;
	flat.selector = 0x10;
	sregs.ds = sregs.es = sregs.ss = flat;
	flat.type = 11;
	flat.selector = 0x8;
	sregs.cs = flat;
	sregs.cr0 |= 1;		/* PE */
	WORKS(ioctl(walker->vcpu_fd, KVM_SET_SREGS, &sregs));
	WORKS(ioctl(walker->vcpu_fd, KVM_SET_REGS, &regs));
}

static uint32_t report_of(const struct kvm_run *run)
{
	uint32_t value;

	memcpy(&value, (const char *)run + run->io.data_offset, sizeof(value));
	return value;
}

static bool is_pass(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO && run->io.port == PASS_PORT;
}

static bool is_wrong(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO && run->io.port == WRONG_PORT;
}

#else

static void init_walker(struct walker *walker, uint64_t begin, uint64_t end, uint64_t step)
{
	arm64_init_vcpu(walker->walk->m.vm_fd, walker->vcpu_fd);
	arm64_set_register(walker->vcpu_fd, offsetof(struct kvm_regs, regs.regs[0]), begin);
	arm64_set_register(walker->vcpu_fd, offsetof(struct kvm_regs, regs.regs[1]), end);
	arm64_set_register(walker->vcpu_fd, offsetof(struct kvm_regs, regs.regs[2]), REPORT_GPA);
	arm64_set_register(walker->vcpu_fd, offsetof(struct kvm_regs, regs.regs[3]), 0);
	arm64_set_register(walker->vcpu_fd, offsetof(struct kvm_regs, regs.regs[4]), step);
	arm64_set_register(walker->vcpu_fd, offsetof(struct kvm_regs, regs.pc), CODE_GPA);
}

static uint32_t report_of(const struct kvm_run *run)
{
	uint32_t value;

	memcpy(&value, run->mmio.data, sizeof(value));
	return value;
}

static bool is_report(const struct kvm_run *run, uint64_t offset)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == REPORT_GPA + offset;
}

static bool is_pass(const struct kvm_run *run)
{
	return is_report(run, 0);
}

static bool is_wrong(const struct kvm_run *run)
{
	return is_report(run, WRONG_OFFSET);
}

#endif

static uint64_t window_size(const struct walk *walk)
{
	return PIECES * walk->piece;
}

static bool is_in_window(const struct walk *walk, uint64_t gpa)
{
	return gpa >= WINDOW && gpa < WINDOW + window_size(walk);
}

/* A load where no memory is reads all ones; a store goes nowhere. */
static void answer_mmio(struct walker *walker)
{
	struct kvm_run *run = walker->run;

	if (!is_in_window(walker->walk, run->mmio.phys_addr))
		FAIL("vCPU %u: MMIO at 0x%llx, outside of what it walks", walker->number,
		     (unsigned long long)run->mmio.phys_addr);
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	walker->mmio++;
}

/* KVM_RUN failed: with -EFAULT, and about memory in the window if it says so */
static void take_fault(struct walker *walker, int error)
{
	uint64_t fault[3];	/* flags, gpa, size: older headers have no name for them */

	if (error != -EFAULT)
		FAIL("vCPU %u: KVM_RUN gave %d, exit reason %u", walker->number, error,
		     walker->run->exit_reason);
	if (walker->run->exit_reason != KVM_EXIT_MEMORY_FAULT) {
		walker->bare_faults++;
		return;
	}

	memcpy(fault, &walker->run->hw, sizeof(fault));
	if (!is_in_window(walker->walk, fault[1]))
		FAIL("vCPU %u: memory fault at 0x%llx, outside of what it walks", walker->number,
		     (unsigned long long)fault[1]);
	CHECK_EQ(fault[0] & ~(uint64_t)8, 0);	/* KVM_MEMORY_EXIT_FLAG_PRIVATE */
	CHECK_EQ(fault[2], walker->walk->page);
	walker->memory_faults++;
	/* No other fault may look like this one. (What MMIO leaves there KVM reads.) */
	walker->run->exit_reason = KVM_EXIT_UNKNOWN;
}

static void take_exit(struct walker *walker)
{
	struct kvm_run *run = walker->run;

	if (is_pass(run))
		atomic_fetch_add(&walker->passes, 1);
	else if (is_wrong(run))
		FAIL("vCPU %u found 0x%x in pass %llu", walker->number, report_of(run),
		     (unsigned long long)walker->passes);
	else if (run->exit_reason == KVM_EXIT_MMIO)
		answer_mmio(walker);
	else
		FAIL("vCPU %u: exit reason %u", walker->number, run->exit_reason);
}

/* Runs until told to stop, then to the end of a pass that began after that. */
static void *run_walker(void *data)
{
	struct walker *walker = data;
	uint64_t last_pass = UINT64_MAX;
	int error;

	while (walker->passes < last_pass) {
		if (last_pass == UINT64_MAX && atomic_load(&walker->walk->stop))
			last_pass = walker->passes + 2;
		error = (int)SYS(ioctl(walker->vcpu_fd, KVM_RUN, 0));
		if (!error)
			take_exit(walker);
		else if (error != -EINTR)
			take_fault(walker, error);
	}
	return NULL;
}

static void walker_new(struct walk *walk, unsigned int number)
{
	struct walker *walker = &walk->walkers[number];
	uint64_t begin = WINDOW + number * PAGES_APART * walk->page;

	*walker = (struct walker){ .walk = walk, .number = number };
	walker->vcpu_fd = (int)WORKS(ioctl(walk->m.vm_fd, KVM_CREATE_VCPU, number));
	WORKS(fcntl(walker->vcpu_fd, F_SETFD, FD_CLOEXEC));
	walker->run_size = (uint64_t)WORKS(ioctl(walk->m.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0));
	walker->run = mmap(NULL, walker->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			   walker->vcpu_fd, 0);
	CHECK(walker->run != MAP_FAILED);
	init_walker(walker, begin, WINDOW + window_size(walk), VCPUS * PAGES_APART * walk->page);
}

static void walker_free(struct walker *walker)
{
	munmap(walker->run, walker->run_size);
	close(walker->vcpu_fd);
}

static void load_code(struct walk *walk)
{
	size_t size = (size_t)(walk_end - walk_begin);

	CHECK(size > 0 && size <= walk->page);
	walk->code = mmap(NULL, walk->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(walk->code != MAP_FAILED);
	memcpy(walk->code, walk_begin, size);
	__builtin___clear_cache(walk->code, (char *)walk->code + size);
	WORKS(raw_slot(walk->m.vm_fd, GUEST_SLOT, 0, CODE_GPA, walk->page, walk->code));
}

static uint64_t piece_gpa(const struct walk *walk, unsigned int piece)
{
	return WINDOW + piece * walk->piece;
}

static void walk_new(struct walk *walk, int type, uint32_t backing)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = 0);

	*walk = (struct walk){ .page = page_size(), .random = 0x9e3779b97f4a7c15 };
	walk->piece = PIECE_PAGES * walk->page;
	machine_new(&walk->m, type);
	opts.caps = walk->m.caps;
	OK(gmem_vm_new(walk->m.vm_fd, &opts, &walk->vm));
	load_code(walk);
	stock_new(&walk->stock, &walk->m, backing, window_size(walk));
	for (unsigned int i = 0; i < PIECES; i++)
		walk->regions[i] = stock_add(walk->vm, &walk->stock, piece_gpa(walk, i),
					     i * walk->piece, walk->piece);
	for (unsigned int i = 0; i < VCPUS; i++)
		walker_new(walk, i);
}

static void walk_free(struct walk *walk)
{
	for (unsigned int i = 0; i < VCPUS; i++)
		walker_free(&walk->walkers[i]);
	gmem_vm_free(walk->vm);
	stock_free(&walk->stock);
	munmap(walk->code, walk->page);
	machine_free(&walk->m);
}

/* ---- what happens to the memory meanwhile ---- */

static void make_private(struct walk *walk)
{
	struct gmem_kvm_memory_attributes args = {
		.address = WINDOW,
		.size = window_size(walk),
		.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};

	WORKS(ioctl(walk->m.vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &args));
	walk->is_private = true;
}

/* Let the vCPUs meet what there is now. */
static void pause_a_little(struct walk *walk)
{
	uint32_t microseconds = pick(&walk->random, 300);

	if (microseconds)
		usleep(microseconds);
}

static void remove_and_add(struct walk *walk, unsigned int piece)
{
	OK(gmem_region_remove(walk->regions[piece]));
	pause_a_little(walk);
	walk->regions[piece] = stock_add(walk->vm, &walk->stock, piece_gpa(walk, piece),
					 piece * walk->piece, walk->piece);
}

static void move_away_and_back(struct walk *walk, unsigned int piece)
{
	OK(gmem_region_move(walk->regions[piece], ELSEWHERE));
	pause_a_little(walk);
	OK(gmem_region_move(walk->regions[piece], piece_gpa(walk, piece)));
}

static struct gmem_change *new_change(struct gmem_vm *vm)
{
	struct gmem_change *change = NULL;

	OK(gmem_change_new(vm, &change));
	return change;
}

static void split_and_join(struct walk *walk, unsigned int piece)
{
	struct gmem_region_opts opts = stock_opts(&walk->stock, piece * walk->piece);
	uint64_t offset = (1 + pick(&walk->random, PIECE_PAGES - 1)) * walk->page;
	struct gmem_region *upper = NULL;
	struct gmem_change *change;

	OK(gmem_region_split(walk->regions[piece], offset, &upper));
	pause_a_little(walk);
	change = new_change(walk->vm);
	OK(gmem_change_remove(change, walk->regions[piece]));
	OK(gmem_change_remove(change, upper));
	OK(gmem_change_add(change, piece_gpa(walk, piece), walk->piece, &opts, &walk->regions[piece]));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
}

/* All pieces are away and come back in one change each. */
static void move_all(struct walk *walk, unsigned int piece)
{
	struct gmem_change *change = new_change(walk->vm);

	(void)piece;
	for (unsigned int i = 0; i < PIECES; i++)
		OK(gmem_change_move(change, walk->regions[i],
				    ELSEWHERE + (PIECES - i) * walk->piece));
	OK(gmem_change_apply(change));
	pause_a_little(walk);
	for (unsigned int i = 0; i < PIECES; i++)
		OK(gmem_change_move(change, walk->regions[i], piece_gpa(walk, i)));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
}

/* Refused at its last step by the code's memslot, of which the library does not know */
static void be_refused(struct walk *walk, unsigned int piece)
{
	struct gmem_change *change = new_change(walk->vm);

	OK(gmem_change_move(change, walk->regions[piece], ELSEWHERE));
	OK(gmem_change_move(change, walk->regions[(piece + 1) % PIECES], CODE_GPA));
	REFUSED(gmem_change_apply(change), -EEXIST);
	gmem_change_free(change);
	CHECK_EQ(gmem_region_gpa(walk->regions[piece]), piece_gpa(walk, piece));
}

static void change_layouts(struct walk *walk, uint64_t ms)
{
	static void (*const changes[])(struct walk *, unsigned int) = {
		remove_and_add, move_away_and_back, split_and_join, move_all, be_refused,
	};
	uint64_t end = now_ms() + ms;

	while (now_ms() < end || walk->changes < ARRAY_SIZE(changes)) {
		changes[next_change(walk->changes, &walk->random, ARRAY_SIZE(changes))](
			walk, pick(&walk->random, PIECES));
		pause_a_little(walk);
		walk->changes++;
	}
}

/* The host finds in every page what the vCPUs left there in their last passes. */
static void check_words(struct walk *walk)
{
	if (walk->is_private)
		return;
	for (uint64_t page = 0; page < PIECES * PIECE_PAGES; page += PAGES_APART)
		CHECK_EQ(host_load(walk->stock.hva + page * walk->page),
			 walk->walkers[page / PAGES_APART % VCPUS].passes);
}

static void report_walk(const struct walk *walk)
{
	uint64_t passes = 0, mmio = 0, memory_faults = 0, bare_faults = 0;

	for (unsigned int i = 0; i < VCPUS; i++) {
		passes += walk->walkers[i].passes;
		mmio += walk->walkers[i].mmio;
		memory_faults += walk->walkers[i].memory_faults;
		bare_faults += walk->walkers[i].bare_faults;
	}
	note("%s%s: %u changes, %llu passes, exits: %llu mmio, %llu memory faults, %llu -EFAULT alone",
	     gmem_backing_name(gmem_plan_backing(walk->stock.plan)),
	     walk->is_private ? ", private side" : "", walk->changes, (unsigned long long)passes,
	     (unsigned long long)mmio, (unsigned long long)memory_faults,
	     (unsigned long long)bare_faults);
}

static void run_walk(struct walk *walk, uint64_t ms)
{
	for (unsigned int i = 0; i < VCPUS; i++)
		CHECK_EQ(pthread_create(&walk->walkers[i].thread, NULL, run_walker,
					&walk->walkers[i]), 0);
	change_layouts(walk, ms);
	atomic_store(&walk->stop, true);
	for (unsigned int i = 0; i < VCPUS; i++)
		CHECK_EQ(pthread_join(walk->walkers[i].thread, NULL), 0);
	check_words(walk);
	report_walk(walk);
}

static void walk_while_it_changes(int type, uint32_t backing, uint64_t ms)
{
	struct walk walk;

	walk_new(&walk, type, backing);
	run_walk(&walk, ms);
	walk_free(&walk);
}

TEST(guests_keep_their_data_while_their_memory_comes_and_goes)
{
	for_each_way(walk_while_it_changes);
}

TEST(guests_keep_their_private_data_while_their_memory_comes_and_goes)
{
	struct walk walk;

	walk_new(&walk, PRIVATE_VM, GMEM_BACKING_PRIVATE);
	make_private(&walk);
	run_walk(&walk, stress_ms());
	walk_free(&walk);
}

/* ---- views that read while the layout changes ---- */

#define READERS 4
#define PART_PAGES 4

/*
 * In the order of their addresses. Each part's memory is full of a number of
 * its own, so that a reader knows whose bytes it got.
 */
enum part {
	STEADY,			/* always there, by turns with one or another memory */
	PLUGGED,		/* right behind: comes and goes with what is in it */
	SPLIT,			/* always there, in one region or two */
	HERE,			/* one region is at one of these two */
	THERE,
	PARTS,
};

/* the shelves of the stock */
enum shelf { STEADY_ONE, STEADY_OTHER, SPLIT_SHELF, MOVER_SHELF, SHELVES };

struct reading {
	struct machine m;
	struct gmem_vm *vm;
	struct stock stock;
	uint64_t page, part;	/* sizes */
	struct gmem_region *regions[PARTS];
	bool is_other;		/* STEADY has its other memory */
	pthread_t threads[READERS];
	_Atomic unsigned int started;
	atomic_bool stop;
	_Atomic uint64_t reads, gone;
	unsigned int changes;
	uint64_t random;
};

struct reader {
	struct reading *reading;
	struct gmem_view *view;
	uint64_t *buf;		/* two parts */
	uint64_t random;
	uint64_t reads, gone;
};

static uint64_t part_gpa(const struct reading *r, enum part part)
{
	/* PLUGGED touches STEADY, the others stand alone. */
	return WINDOW + (part <= PLUGGED ? part * r->part : part * 2 * MIB + r->part);
}

static uint64_t number_of(enum shelf shelf)
{
	return 0x1111111111111111 * (shelf + 1);
}

#define PLUGGED_NUMBER 0x9999999999999999

static void check_all(const uint64_t *words, uint64_t size, uint64_t number)
{
	for (uint64_t i = 0; i < size / 8; i++) {
		if (words[i] != number)
			FAIL("word %llu of %llu is 0x%llx, not 0x%llx", (unsigned long long)i,
			     (unsigned long long)(size / 8), (unsigned long long)words[i],
			     (unsigned long long)number);
	}
}

/* One pinned view sees one layout: all of one memory or all of the other. */
static void check_steady(const uint64_t *words, uint64_t size)
{
	if (words[0] != number_of(STEADY_ONE))
		check_all(words, size, number_of(STEADY_OTHER));
	else
		check_all(words, size, number_of(STEADY_ONE));
}

/* New memory, being filled: a copy of it may have halves of words, but nothing else. */
static void check_plugged(const void *buf, uint64_t size)
{
	const uint8_t *bytes = buf;

	for (uint64_t i = 0; i < size; i++) {
		if (bytes[i] && bytes[i] != (uint8_t)PLUGGED_NUMBER)
			FAIL("byte %llu of new memory is 0x%x", (unsigned long long)i, bytes[i]);
	}
}

static void read_steady(struct reader *reader)
{
	struct reading *r = reader->reading;
	uint64_t done = 0;

	OK(gmem_view_read(reader->view, part_gpa(r, STEADY), reader->buf, r->part, &done));
	CHECK_EQ(done, r->part);
	check_steady(reader->buf, r->part);
}

/* Past the end of STEADY: as far as there is memory, and not a byte less */
static void read_across(struct reader *reader)
{
	struct reading *r = reader->reading;
	uint64_t done = 0;
	int err;

	err = gmem_view_read(reader->view, part_gpa(r, STEADY), reader->buf, 2 * r->part, &done);
	check_steady(reader->buf, r->part);
	if (!err) {
		CHECK_EQ(done, 2 * r->part);
		check_plugged(reader->buf + r->part / 8, r->part);
		return;
	}
	if (err != -ESTALE && err != -ENOENT)
		FAIL("a read gave %d: %s", err, gmem_last_error());
	CHECK_EQ(done, r->part);
	reader->gone++;
}

static void load_plugged(struct reader *reader)
{
	struct reading *r = reader->reading;
	uint64_t offset = 8 * pick(&reader->random, (uint32_t)(r->part / 8)), number = 0;
	int err;

	err = gmem_view_load(reader->view, part_gpa(r, PLUGGED) + offset, 8, GMEM_ACQUIRE, &number);
	if (err && err != -ESTALE && err != -ENOENT)
		FAIL("a load gave %d: %s", err, gmem_last_error());
	CHECK(number == 0 || number == PLUGGED_NUMBER);
	reader->gone += err != 0;
}

static void compare_split(struct reader *reader)
{
	struct reading *r = reader->reading;
	uint64_t done = 0;
	int order = 1;

	for (uint64_t i = 0; i < r->part / 8; i++)
		reader->buf[i] = number_of(SPLIT_SHELF);
	OK(gmem_view_compare(reader->view, part_gpa(r, SPLIT), reader->buf, r->part, &order, &done));
	CHECK_EQ(order, 0);
	CHECK_EQ(done, r->part);
}

/* Host addresses, used as long as the view is held */
static void look_at_mover(struct reader *reader)
{
	struct reading *r = reader->reading;
	void *here = NULL, *there = NULL;
	int no_here, no_there;

	gmem_view_begin(reader->view);
	no_here = gmem_view_hva(reader->view, part_gpa(r, HERE), r->part, &here);
	no_there = gmem_view_hva(reader->view, part_gpa(r, THERE), r->part, &there);
	CHECK(!no_here != !no_there);
	CHECK((no_here ? no_here : no_there) == -ESTALE || (no_here ? no_here : no_there) == -ENOENT);
	check_all(here ? here : there, r->part, number_of(MOVER_SHELF));
	gmem_view_end(reader->view);
}

/* The address of memory that is about to be unmapped */
static void look_at_plugged(struct reader *reader)
{
	struct reading *r = reader->reading;
	void *hva = NULL;

	gmem_view_begin(reader->view);
	if (!gmem_view_hva(reader->view, part_gpa(r, PLUGGED), r->part, &hva))
		check_plugged(hva, r->part);
	else
		reader->gone++;
	gmem_view_end(reader->view);
}

static void list_all(struct reader *reader)
{
	struct reading *r = reader->reading;
	struct iovec iov[2];
	int count;

	gmem_view_begin(reader->view);
	count = gmem_view_iovec(reader->view, part_gpa(r, SPLIT), r->part, iov, 2);
	CHECK(count == 1 || count == 2);
	for (int i = 0; i < count; i++)
		check_all(iov[i].iov_base, iov[i].iov_len, number_of(SPLIT_SHELF));
	gmem_view_end(reader->view);
}

/* Half of them block SIGBUS: their views ask the kernel to copy. */
static void maybe_block_sigbus(unsigned int number)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	if (number % 2)
		CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
}

static void *run_reader(void *data)
{
	static void (*const looks[])(struct reader *) = {
		read_steady, read_across, load_plugged, compare_split,
		look_at_mover, look_at_plugged, list_all,
	};
	struct reader reader = { .reading = data };
	unsigned int number = atomic_fetch_add(&reader.reading->started, 1);

	maybe_block_sigbus(number);
	reader.random = 0x2545f4914f6cdd1d + number;
	reader.buf = malloc(2 * reader.reading->part);
	CHECK(reader.buf);
	OK(gmem_view_new(reader.reading->vm, &reader.view));
	while (!atomic_load(&reader.reading->stop)) {
		looks[pick(&reader.random, ARRAY_SIZE(looks))](&reader);
		/* On a machine with few CPUs, be preempted here rather than with the view held. */
		if (++reader.reads % 16 == 0)
			sched_yield();
	}
	gmem_view_free(reader.view);
	free(reader.buf);
	atomic_fetch_add(&reader.reading->reads, reader.reads);
	atomic_fetch_add(&reader.reading->gone, reader.gone);
	return NULL;
}

static struct gmem_region *add_shelf(struct reading *r, enum part part, enum shelf shelf)
{
	return stock_add(r->vm, &r->stock, part_gpa(r, part), shelf * r->part, r->part);
}

static void reading_new(struct reading *r, int type, uint32_t backing)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = 0);

	*r = (struct reading){ .page = page_size(), .random = 0x9e3779b97f4a7c15 };
	r->part = PART_PAGES * r->page;
	machine_new(&r->m, type);
	opts.caps = r->m.caps;
	OK(gmem_vm_new(r->m.vm_fd, &opts, &r->vm));
	stock_new(&r->stock, &r->m, backing, SHELVES * r->part);
	for (uint64_t i = 0; i < r->stock.size / 8; i++)
		((uint64_t *)(void *)r->stock.hva)[i] = number_of((enum shelf)(i / (r->part / 8)));
	r->regions[STEADY] = add_shelf(r, STEADY, STEADY_ONE);
	r->regions[SPLIT] = add_shelf(r, SPLIT, SPLIT_SHELF);
	r->regions[HERE] = add_shelf(r, HERE, MOVER_SHELF);
}

static void reading_free(struct reading *r)
{
	gmem_vm_free(r->vm);
	stock_free(&r->stock);
	machine_free(&r->m);
}

static void exchange_steady(struct reading *r)
{
	enum shelf next = r->is_other ? STEADY_ONE : STEADY_OTHER;
	struct gmem_region_opts opts = stock_opts(&r->stock, next * r->part);
	struct gmem_change *change = new_change(r->vm);

	OK(gmem_change_remove(change, r->regions[STEADY]));
	OK(gmem_change_add(change, part_gpa(r, STEADY), r->part, &opts, &r->regions[STEADY]));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
	r->is_other = !r->is_other;
}

/* Memory of the region's own, which goes with it */
static void plug_or_unplug(struct reading *r)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = r->stock.plan);
	volatile uint64_t *words;

	if (r->regions[PLUGGED]) {
		OK(gmem_region_remove(r->regions[PLUGGED]));
		r->regions[PLUGGED] = NULL;
		return;
	}
	OK(gmem_region_add(r->vm, part_gpa(r, PLUGGED), r->part, &opts, &r->regions[PLUGGED]));
	words = gmem_region_hva(r->regions[PLUGGED]);
	for (uint64_t i = 0; i < r->part / 8; i++)
		words[i] = PLUGGED_NUMBER;
}

static void split_or_join(struct reading *r)
{
	uint64_t offset = (1 + pick(&r->random, PART_PAGES - 1)) * r->page;
	struct gmem_region_opts opts = stock_opts(&r->stock, SPLIT_SHELF * r->part);
	struct gmem_change *change = new_change(r->vm);
	struct gmem_region *upper = NULL;

	OK(gmem_region_split(r->regions[SPLIT], offset, &upper));
	sched_yield();
	OK(gmem_change_remove(change, upper));
	OK(gmem_change_remove(change, r->regions[SPLIT]));
	OK(gmem_change_add(change, part_gpa(r, SPLIT), r->part, &opts, &r->regions[SPLIT]));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
}

static void move_mover(struct reading *r)
{
	bool is_here = gmem_region_gpa(r->regions[HERE]) == part_gpa(r, HERE);

	OK(gmem_region_move(r->regions[HERE], part_gpa(r, is_here ? THERE : HERE)));
}

static void hotplug(struct reading *r, uint64_t ms)
{
	static void (*const changes[])(struct reading *) = {
		exchange_steady, plug_or_unplug, split_or_join, move_mover,
	};
	uint64_t end = now_ms() + ms;

	while (now_ms() < end || r->changes < ARRAY_SIZE(changes)) {
		changes[next_change(r->changes, &r->random, ARRAY_SIZE(changes))](r);
		r->changes++;
	}
}

static void read_while_it_changes(int type, uint32_t backing, uint64_t ms)
{
	struct reading r;

	reading_new(&r, type, backing);
	OK(gmem_recovery_enable());
	for (unsigned int i = 0; i < READERS; i++)
		CHECK_EQ(pthread_create(&r.threads[i], NULL, run_reader, &r), 0);
	hotplug(&r, ms);
	atomic_store(&r.stop, true);
	for (unsigned int i = 0; i < READERS; i++)
		CHECK_EQ(pthread_join(r.threads[i], NULL), 0);
	gmem_recovery_disable();
	note("%s: %u changes, %llu looks, %llu at memory that was gone", gmem_backing_name(backing),
	     r.changes, (unsigned long long)r.reads, (unsigned long long)r.gone);
	reading_free(&r);
}

TEST(views_see_one_whole_layout_while_memory_is_hot_plugged)
{
	for_each_way(read_while_it_changes);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
