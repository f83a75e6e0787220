/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab.h"
#include "proof.h"

#define DEFAULT_ROUNDS	40
#define EMULATED_ROUNDS	10	/* with a bit of everything: each takes half a second */
#define MIRRORS		3
#define MAX_REGIONS	16
#define CAP_MANUAL_PROTECT	168	/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, Linux 5.0 */
#define CAP_RING		192	/* KVM_CAP_DIRTY_LOG_RING, Linux 5.11 */
#define CAP_RING_ACQ_REL	223	/* KVM_CAP_DIRTY_LOG_RING_ACQ_REL, Linux 6.1 */

uint64_t proof_rounds, proof_seed = 1, proof_kinds = PROOF_ALL_KINDS;

/* Memory as one tracker has told of it */
struct mirror {
	struct gmem_dirty *dirty;
	char *bytes;			/* of the window */
	unsigned int number;
};

#define CHAIN_MOST	5
#define QUIET_EVERY	10	/* rounds, of which these have no changes of the layout: */
#define QUIET_FIRST	6

/* Images, each based on the one before */
struct chain {
	struct gmem_dirty *dirty;
	int fds[CHAIN_MOST];
	unsigned int count;
};

/* A VM whose memory comes from images only */
struct other {
	struct machine m;
	struct gmem_vm *vm;
};

/* The other VM receives what this one sends while it runs. */
struct moving {
	struct gmem_migration *migration;	/* NULL: none is under way */
	pthread_t receiver;
	int socks[2];
	int received;				/* what gmem_vm_restore() returned */
	struct gmem_vm *vm;
	bool is_broken;
};

struct proof {
	struct scribble s;
	const struct proof_way *way;
	struct gmem_view *view;
	struct mirror mirrors[MIRRORS];
	struct chain chain;
	struct other other;
	struct moving moving;
	int saved_fd;			/* all memory, for a while; -1: none */
	uint64_t random;
	uint64_t round;
	uint64_t collections, told_bytes, restored, moved;
	char *difference;		/* what differed first: 200 bytes, "" for nothing */
};

static uint64_t dice(struct proof *p, uint64_t limit)
{
	return scribble_random(&p->random, limit);
}

int proof_arguments(int argc, char **argv)
{
	char seconds[32];
	int kept = 1;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
			proof_rounds = strtoull(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
			proof_seed = strtoull(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--kinds") == 0 && i + 1 < argc)
			proof_kinds = strtoull(argv[++i], NULL, 0);
		else
			argv[kept++] = argv[i];
	}
	argv[kept] = NULL;
	if (!proof_rounds)
		proof_rounds = emulated_machine() ? EMULATED_ROUNDS : DEFAULT_ROUNDS;
	/* The runner gives that much longer: a round takes a hundredth of that, if the machine is idle. */
	snprintf(seconds, sizeof(seconds), "%llu",
		 (unsigned long long)(emulated_machine() ? 20 * proof_rounds : proof_rounds));
	setenv("GMEM_STRESS_SECONDS", seconds, 0);
	return kept;
}

/* ---- the VM ---- */

static void enable(struct proof *p, uint32_t cap, uint64_t argument)
{
	struct kvm_enable_cap args = { .cap = cap };

	args.args[0] = argument;
	WORKS(ioctl(p->s.m.vm_fd, KVM_ENABLE_CAP, &args));
}

static void enable_rings(struct proof *p)
{
	uint32_t cap = CAP_RING_ACQ_REL;
	int most = kvm_cap(p->s.m.vm_fd, cap);

	if (most < 1) {
		cap = CAP_RING;
		most = kvm_cap(p->s.m.vm_fd, cap);
	}
	if (most < (int)p->way->ring_bytes)
		skip("KVM has no dirty rings of %u bytes here, at most of %d",
		     (unsigned int)p->way->ring_bytes, most);
	enable(p, cap, p->way->ring_bytes);
}

static void enable_logs(struct proof *p)
{
	int has = kvm_cap(p->s.m.vm_fd, CAP_MANUAL_PROTECT);

	if (p->way->ring_bytes)
		enable_rings(p);
	if (!p->way->manual_protect)
		return;
	if (((uint64_t)has & p->way->manual_protect) != p->way->manual_protect)
		skip("KVM has no such manual protection here: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is %d", has);
	enable(p, CAP_MANUAL_PROTECT, p->way->manual_protect);
}

static struct gmem_region *add(struct proof *p, uint32_t backing, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_region *region;
	struct gmem_plan *plan;

	require_backing(&p->s.m, backing, &plan);
	opts.plan = plan;
	if (gpa == PEER_GPA)
		opts.memory = &memory;
	OK(gmem_region_add(p->s.vm, gpa, size, &opts, &region));
	gmem_plan_free(plan);
	return region;
}

static void make_hot_file(struct proof *p)
{
	struct gmem_plan *plan;

	if (!(expect_vm(p->way->type)->backings & 1u << GMEM_BACKING_MAPPED))
		return;
	require_backing(&p->s.m, GMEM_BACKING_MAPPED, &plan);
	OK(gmem_file_new(p->s.m.vm_fd, 2 * HOT_PAGES * p->s.page, plan, &p->s.hot_file));
	gmem_plan_free(plan);
}

static void begin_vm(struct proof *p)
{
	GMEM_OPTS(gmem_export_opts, opts, .flags = GMEM_EXPORT_SKIP);
	struct scribble *s = &p->s;

	machine_new(&s->m, p->way->type);
	enable_logs(p);
	OK(gmem_vm_new(s->m.vm_fd, NULL, &s->vm));
	guest_new(&s->guest, s->m.vm_fd, s->m.kvm_fd);
	OK(gmem_vcpu_new(s->vm, s->guest.vcpu_fd, NULL, &s->vcpu));
	if (p->way->ring_bytes)
		OK(gmem_vm_add_dirty_ring(s->vm, s->guest.vcpu_fd, p->way->ring_bytes));

	add(p, p->way->backing, GIB - s->half, 2 * s->half);
	add(p, p->way->backing == GMEM_BACKING_PRIVATE ? GMEM_BACKING_HOST : p->way->backing,
	    BIG_GPA - s->page, 2 * MIB + 2 * s->page);
	make_hot_file(p);
	s->own_memory = mmap(NULL, HOT_PAGES * s->page, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(s->own_memory != MAP_FAILED);
	memset(s->own_memory, 0x11, HOT_PAGES * s->page);

	if (s->has_devices) {
		add(p, GMEM_BACKING_HOST, PEER_GPA, s->half);
		OK(gmem_export_new(s->vm, &opts, &s->exporter));
	}
	OK(gmem_view_new(s->vm, &p->view));
}

static void end_vm(struct proof *p)
{
	struct scribble *s = &p->s;

	gmem_view_free(p->view);
	gmem_export_free(s->exporter);
	if (p->way->ring_bytes)
		OK(gmem_vm_remove_dirty_ring(s->vm, s->guest.vcpu_fd));
	gmem_vcpu_free(s->vcpu);
	guest_free(&s->guest);
	gmem_vm_free(s->vm);
	gmem_file_free(s->hot_file);
	munmap(s->own_memory, HOT_PAGES * s->page);
	machine_free(&s->m);
}

/* ---- copies ---- */

/* Page by page where it cannot be had as a whole: part may be private, or gone. */
static void copy_range(struct proof *p, struct mirror *m, uint64_t gpa, uint64_t size)
{
	char *to = m->bytes + (gpa - WINDOW_GPA);
	int err;

	CHECK(gpa >= WINDOW_GPA && gpa + size <= WINDOW_GPA + WINDOW_SIZE);
	p->told_bytes += size;
	if (!gmem_view_read(p->view, gpa, to, size, NULL))
		return;
	for (uint64_t at = 0; at < size; at += p->s.page) {
		err = gmem_view_read(p->view, gpa + at, to + at, p->s.page, NULL);
		if (err && err != -ENOENT && err != -ESTALE && err != -EACCES)
			FAIL("a told page at 0x%llx cannot be read: %s", (unsigned long long)(gpa + at),
			     gmem_last_error());
	}
}

static uint64_t copy_told(struct proof *p, struct mirror *m)
{
	struct gmem_dirty_range range;
	uint64_t gpa = 0, bytes = 0;

	for (; !gmem_dirty_next(m->dirty, gpa, &range); gpa = range.gpa + range.size) {
		CHECK(range.gpa >= gpa && range.size && !(range.gpa % p->s.page) && !(range.size % p->s.page));
		if (range.flags & GMEM_DIRTY_RANGE_PRIVATE)
			continue;
		bytes += range.size;
		copy_range(p, m, range.gpa, range.size);
	}
	return bytes;
}

static void collect_and_copy(struct proof *p, struct mirror *m)
{
	/* Whoever cannot use what was collected gets it again. */
	if (dice(p, 8) == 0) {
		OK(gmem_dirty_collect(m->dirty, NULL));
		if (dice(p, 2))
			copy_told(p, m);
		OK(gmem_dirty_put_back(m->dirty));
	}
	OK(gmem_dirty_collect(m->dirty, NULL));
	copy_told(p, m);
	p->collections++;
}

static void begin_mirror(struct proof *p, unsigned int number, uint64_t flags)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = flags | p->way->tracker_flags);
	struct mirror *m = &p->mirrors[number];
	struct gmem_region_info regions[MAX_REGIONS];
	int count;

	OK(gmem_dirty_new(p->s.vm, &opts, &m->dirty));
	m->number = number;
	if (!m->bytes)
		m->bytes = mmap(NULL, WINDOW_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m->bytes != MAP_FAILED);
	memset(m->bytes, 0xee, WINDOW_SIZE);
	if (!(flags & GMEM_DIRTY_FROM_NOW))
		return;
	/* What was there before it began is not told; what changes meanwhile is. */
	count = (int)WORKS(gmem_vm_regions(p->s.vm, regions, MAX_REGIONS));
	for (int i = 0; i < count; i++)
		copy_range(p, m, regions[i].gpa, regions[i].size);
}

static void end_mirror(struct mirror *m)
{
	gmem_dirty_free(m->dirty);
	m->dirty = NULL;
}

/* ---- comparing ---- */

static void tell_difference(struct proof *p, const struct mirror *m, uint64_t gpa, const char *page)
{
	const char *mine = m->bytes + (gpa - WINDOW_GPA);
	uint64_t at = 0;
	uint32_t word, copy;

	while (page[at] == mine[at])
		at++;
	memcpy(&word, page + at / 4 * 4, 4);
	memcpy(&copy, mine + at / 4 * 4, 4);
	if (!p->difference[0])
		snprintf(p->difference, 200, "round %llu, tracker %u, gpa 0x%llx: memory has 0x%08x, the copy "
			 "0x%08x; %s", (unsigned long long)p->round, m->number,
			 (unsigned long long)(gpa + at), (unsigned int)word, (unsigned int)copy,
			 scribble_describe(&p->s, gpa + at));
}

static bool is_private(struct proof *p, uint64_t gpa)
{
	struct gmem_state_range range;

	return p->s.can_convert && gmem_vm_state(p->s.vm, gpa, p->s.page, &range, 1) == 1 &&
	       range.state == GMEM_STATE_PRIVATE;
}

/* The memory itself, without the library's help */
static void compare_region(struct proof *p, const struct mirror *m, const struct gmem_region_info *region)
{
	const char *hva = region->hva, *mine = m->bytes + (region->gpa - WINDOW_GPA);
	uint64_t page = p->s.page;

	if (!memcmp(hva, mine, region->size))
		return;
	for (uint64_t at = 0; at < region->size && !p->difference[0]; at += page)
		if (memcmp(hva + at, mine + at, page) && !is_private(p, region->gpa + at))
			tell_difference(p, m, region->gpa + at, hva + at);
}

static void compare(struct proof *p, const struct mirror *m)
{
	struct gmem_region_info regions[MAX_REGIONS];
	int count = (int)WORKS(gmem_vm_regions(p->s.vm, regions, MAX_REGIONS));

	CHECK(count <= MAX_REGIONS);
	for (int i = 0; i < count; i++)
		compare_region(p, m, &regions[i]);
}

/* With all stopped there is nothing more to tell, in whatever way one asks. */
static void check_nothing_is_left(struct proof *p, struct mirror *m)
{
	static uint64_t bitmap[WINDOW_SIZE / 4096 / 64];
	GMEM_OPTS(gmem_dirty_info, info);
	GMEM_OPTS(gmem_dirty_info, peeked);
	struct gmem_dirty_range range;
	uint64_t bytes, bits = 0;

	/* A peer that has not begun to mark counts each time, and here it is served. */
	for (unsigned int i = 0; i < 5000; i++) {
		OK(gmem_dirty_peek(m->dirty, &peeked));
		if (peeked.bytes == peeked.unlogged_bytes)
			break;
		OK(gmem_dirty_collect(m->dirty, NULL));
		copy_told(p, m);
		usleep(1000);
	}
	OK(gmem_dirty_collect(m->dirty, &info));
	if (info.bytes != info.unlogged_bytes && !gmem_dirty_next(m->dirty, 0, &range))
		note("told still: gpa 0x%llx, 0x%llx bytes, and more?", (unsigned long long)range.gpa,
		     (unsigned long long)range.size);
	CHECK_EQ(info.bytes, info.unlogged_bytes);
	CHECK_EQ(peeked.bytes, info.bytes);
	bytes = copy_told(p, m);
	CHECK_EQ(bytes, info.bytes);
	OK(gmem_dirty_get_bitmap(m->dirty, WINDOW_GPA, WINDOW_SIZE, bitmap, ARRAY_SIZE(bitmap)));
	for (size_t i = 0; i < ARRAY_SIZE(bitmap); i++)
		bits += (uint64_t)__builtin_popcountll(bitmap[i]);
	CHECK_EQ(bits * p->s.page, bytes);
}

/* ---- chains of images ---- */

/* The same regions as the VM has now, of other memory, and empty */
static void lay_out_other(struct proof *p)
{
	struct gmem_region_info regions[MAX_REGIONS];
	int count = (int)WORKS(gmem_vm_regions(p->other.vm, regions, MAX_REGIONS));

	for (int i = 0; i < count; i++)
		OK(gmem_region_remove(regions[i].region));
	count = (int)WORKS(gmem_vm_regions(p->s.vm, regions, MAX_REGIONS));
	for (int i = 0; i < count; i++) {
		GMEM_OPTS(gmem_region_opts, opts);
		struct gmem_region *region;
		struct gmem_plan *plan;

		require_backing(&p->other.m, GMEM_BACKING_HOST, &plan);
		opts.plan = plan;
		OK(gmem_region_add(p->other.vm, regions[i].gpa, regions[i].size, &opts, &region));
		gmem_plan_free(plan);
	}
}

/* What came to the other VM */
static void compare_other(struct proof *p, const char *how)
{
	struct gmem_region_info mine[MAX_REGIONS], others[MAX_REGIONS];
	int count = (int)WORKS(gmem_vm_regions(p->s.vm, mine, MAX_REGIONS));
	uint64_t at = 0;

	CHECK_EQ(WORKS(gmem_vm_regions(p->other.vm, others, MAX_REGIONS)), count);
	p->restored++;
	for (int i = 0; i < count && !p->difference[0]; i++) {
		const char *a = mine[i].hva, *b = others[i].hva;

		if (!memcmp(a, b, mine[i].size))
			continue;
		for (at = 0; a[at] == b[at];)
			at++;
		snprintf(p->difference, 200, "round %llu, %s, gpa 0x%llx: memory has 0x%02x, the other VM "
			 "0x%02x; %s", (unsigned long long)p->round, how,
			 (unsigned long long)(mine[i].gpa + at), (unsigned char)a[at], (unsigned char)b[at],
			 scribble_describe(&p->s, mine[i].gpa + at));
	}
}

static void drop_chain(struct chain *chain)
{
	while (chain->count)
		close(chain->fds[--chain->count]);
}

/* A discard or a change of the layout may be in the way of one that is made meanwhile. */
static void extend_chain(struct proof *p, bool is_stopped)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .dirty = p->chain.dirty);
	struct chain *chain = &p->chain;
	int fd, err;

	if (chain->count == CHAIN_MOST) {
		drop_chain(chain);
		OK(gmem_dirty_set_parent(chain->dirty, 0, 0));
	}
	if (dice(p, 2))
		opts.flags = GMEM_TRANSFER_NO_THREADS;
	fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));
	err = gmem_vm_save(p->s.vm, fd, &opts, NULL);
	if (err == -EBUSY && !is_stopped) {
		close(fd);
		return;
	}
	OK(err);
	chain->fds[chain->count++] = fd;
}

static void restore_chain(struct proof *p)
{
	struct chain *chain = &p->chain;
	GMEM_OPTS(gmem_transfer_opts, opts);

	opts.parent_count = chain->count - 1;
	opts.parents = opts.parent_count ? chain->fds : NULL;
	lay_out_other(p);
	OK(gmem_vm_restore(p->other.vm, chain->fds[chain->count - 1], &opts, NULL));
	compare_other(p, "chain of images");
}

/* With all stopped. The image before it may be one of a VM that ran. */
static void check_chain(struct proof *p)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = p->way->tracker_flags);

	if (p->s.can_convert || p->round % 5 != 4)
		return;
	if (!p->chain.dirty)
		OK(gmem_dirty_new(p->s.vm, &opts, &p->chain.dirty));
	extend_chain(p, true);
	restore_chain(p);
}

static void save_meanwhile(struct proof *p)
{
	if (p->chain.dirty && p->round % 5 == 3)
		extend_chain(p, false);
}

/* Memory is saved, and some rounds later it becomes what it was. */
static void restore_into_itself(struct proof *p)
{
	uint64_t in_turn = p->round % QUIET_EVERY;
	uint32_t number;

	__atomic_store_n(&p->s.hot_stays, in_turn + 1 >= QUIET_FIRST && in_turn + 1 < QUIET_EVERY,
			 __ATOMIC_SEQ_CST);
	if (p->s.can_convert || !(p->s.kinds >> SCRIBBLE_RESTORE & 1))
		return;
	if (in_turn == QUIET_FIRST) {
		p->saved_fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));
		OK(gmem_vm_save(p->s.vm, p->saved_fd, NULL, NULL));
	}
	if (in_turn != QUIET_FIRST + 2 || p->saved_fd < 0)
		return;
	number = scribble_begin(p->s.shared, SCRIBBLE_RESTORE, WINDOW_GPA, WINDOW_SIZE);
	OK(gmem_vm_restore(p->s.vm, p->saved_fd, NULL, NULL));
	scribble_done(p->s.shared, SCRIBBLE_RESTORE, number, WINDOW_GPA, WINDOW_SIZE);
	close(p->saved_fd);
	p->saved_fd = -1;
}

/* ---- migrations ---- */

static void *receive(void *data)
{
	struct moving *moving = data;

	moving->received = gmem_vm_restore(moving->vm, moving->socks[1], NULL, NULL);
	return NULL;
}

static const struct {
	uint64_t tracker, migration;
} migration_flags[] = {
	{ GMEM_DIRTY_VCPUS_STOPPED, GMEM_MIGRATION_VCPUS_STOPPED },
	{ GMEM_DIRTY_ALLOW_UNLOGGED, GMEM_MIGRATION_ALLOW_UNLOGGED },
	{ GMEM_DIRTY_RINGS, GMEM_MIGRATION_RINGS },
};

/* With all stopped, in case memslots are replaced */
static void begin_migration(struct proof *p)
{
	GMEM_OPTS(gmem_migration_opts, opts);
	struct moving *moving = &p->moving;

	if (p->s.can_convert || p->round % QUIET_EVERY != QUIET_FIRST)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(migration_flags); i++)
		if (p->way->tracker_flags & migration_flags[i].tracker)
			opts.flags |= migration_flags[i].migration;
	lay_out_other(p);
	moving->vm = p->other.vm;
	moving->is_broken = false;
	WORKS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, moving->socks));
	CHECK_EQ(pthread_create(&moving->receiver, NULL, receive, moving), 0);
	OK(gmem_migration_new(p->s.vm, moving->socks[0], &opts, &moving->migration));
}

/* A discard in the way is no harm at the beginning of a round, and later the end of the stream. */
static void move_meanwhile(struct proof *p)
{
	struct moving *moving = &p->moving;
	int err;

	for (uint64_t i = 1 + dice(p, 3); moving->migration && i > 0 && !moving->is_broken; i--) {
		err = gmem_migration_round(moving->migration, NULL);
		moving->is_broken = err == -ENOTCONN;
		if (err != -EBUSY && err != -ENOTCONN)
			OK(err);
	}
}

/* With all stopped again */
static void end_migration(struct proof *p)
{
	struct moving *moving = &p->moving;
	int err;

	if (!moving->migration)
		return;
	err = moving->is_broken ? 0 : gmem_migration_finish(moving->migration, NULL);
	moving->is_broken |= err == -ENOTCONN;
	if (!moving->is_broken)
		OK(err);
	gmem_migration_free(moving->migration);
	moving->migration = NULL;
	close(moving->socks[0]);
	CHECK_EQ(pthread_join(moving->receiver, NULL), 0);
	close(moving->socks[1]);
	CHECK_RESULT(moving->received, moving->is_broken ? -ENODATA : 0);
	if (moving->is_broken)
		return;
	p->moved++;
	compare_other(p, "migration");
}

/* ---- the other VM ---- */

static void begin_other(struct proof *p)
{
	GMEM_OPTS(gmem_vm_opts, opts);

	machine_new(&p->other.m, DEFAULT_VM);
	opts.caps = p->other.m.caps;
	OK(gmem_vm_new(p->other.m.vm_fd, &opts, &p->other.vm));
	p->saved_fd = -1;
}

static void end_other(struct proof *p)
{
	gmem_dirty_free(p->chain.dirty);
	drop_chain(&p->chain);
	if (p->saved_fd >= 0)
		close(p->saved_fd);
	gmem_vm_free(p->other.vm);
	machine_free(&p->other.m);
}

/* ---- rounds ---- */

static void collect_meanwhile(struct proof *p)
{
	for (uint64_t i = dice(p, 3); i > 0; i--) {
		usleep((useconds_t)dice(p, 400));
		collect_and_copy(p, &p->mirrors[dice(p, 4) == 0 && p->mirrors[1].dirty]);
	}
	usleep((useconds_t)dice(p, 400));
}

/*
 * Trackers come and go at different paces; now and then there is none. While vCPUs run, or
 * with all stopped, if that is what they need.
 */
static void change_trackers(struct proof *p, bool stopped)
{
	struct mirror *mirrors = p->mirrors;

	if (!(p->way->tracker_flags & GMEM_DIRTY_VCPUS_STOPPED) == stopped)
		return;

	if (p->round % 7 == 3 && !mirrors[2].dirty)
		begin_mirror(p, 2, GMEM_DIRTY_FROM_NOW);
	else if (p->round % 7 == 0 && mirrors[2].dirty)
		end_mirror(&mirrors[2]);
	if (p->round % 16 != 5)
		return;
	for (unsigned int i = 0; i < MIRRORS; i++)
		if (mirrors[i].dirty)
			end_mirror(&mirrors[i]);
	if (p->chain.dirty) {
		gmem_dirty_free(p->chain.dirty);
		p->chain.dirty = NULL;
		drop_chain(&p->chain);
	}
	if (p->way->tracker_flags & GMEM_DIRTY_VCPUS_STOPPED && dice(p, 2))
		OK(gmem_vm_bind_shared(p->s.vm, NULL));
	if (dice(p, 2) && !stopped)
		usleep(1000);
	begin_mirror(p, 0, dice(p, 2) ? GMEM_DIRTY_FROM_NOW : 0);
	begin_mirror(p, 1, dice(p, 2) ? GMEM_DIRTY_FROM_NOW : 0);
}

static void compare_all(struct proof *p)
{
	for (unsigned int i = 0; i < MIRRORS; i++) {
		struct mirror *m = &p->mirrors[i];

		if (!m->dirty || p->round % (i + 1))
			continue;
		collect_and_copy(p, m);
		compare(p, m);
		if (p->round % 4 == 0 && !p->difference[0])
			check_nothing_is_left(p, m);
	}
}

static void one_round(struct proof *p)
{
	bool killed = false;

	in_case("seed %llu, round %llu", (unsigned long long)proof_seed, (unsigned long long)p->round);
	scribble_go(&p->s);
	collect_meanwhile(p);
	change_trackers(p, false);
	save_meanwhile(p);
	move_meanwhile(p);
	if (p->round % 50 == 3)
		killed = scribble_kill_device(&p->s);
	scribble_stop(&p->s);
	end_migration(p);
	restore_into_itself(p);
	compare_all(p);
	check_chain(p);
	change_trackers(p, true);
	if (killed)
		scribble_next_device(&p->s);
	begin_migration(p);
}

bool proof_run(const struct proof_way *way, uint64_t kinds, uint64_t rounds, char *ret)
{
	struct proof p = { .way = way, .random = proof_seed * 2 + 1, .difference = ret };
	struct scribble *s = &p.s;

	*ret = '\0';
	scribble_is_own_thread = true;
	s->seed = proof_seed;
	s->kinds = kinds & proof_kinds;
	s->page = page_size();
	s->half = 32 * s->page < 512 * KIB ? 32 * s->page : 512 * KIB;
	s->is_native = !emulated_machine();
	s->can_convert = way->backing == GMEM_BACKING_PRIVATE;
	s->ring_bytes = way->ring_bytes;
	s->has_devices = s->kinds >> SCRIBBLE_PEER_WRITE;
	scribble_prepare(s);
	begin_vm(&p);
	begin_other(&p);
	OK(gmem_recovery_enable());
	scribble_start(s);
	begin_mirror(&p, 0, 0);
	begin_mirror(&p, 1, GMEM_DIRTY_FROM_NOW);
	for (p.round = 0; p.round < rounds && !ret[0]; p.round++)
		one_round(&p);
	end_migration(&p);
	for (unsigned int i = 0; i < MIRRORS; i++) {
		end_mirror(&p.mirrors[i]);
		munmap(p.mirrors[i].bytes, WINDOW_SIZE);
	}
	scribble_end(s);
	gmem_recovery_disable();
	end_other(&p);
	end_vm(&p);
	note("seed %llu: %llu rounds, %llu collections, %llu MiB told, %llu "
	     "times restored, %llu migrated", (unsigned long long)proof_seed,
	     (unsigned long long)p.round, (unsigned long long)p.collections,
	     (unsigned long long)(p.told_bytes / MIB), (unsigned long long)p.restored,
	     (unsigned long long)p.moved);
	return !ret[0];
}
