/* SPDX-License-Identifier: MIT */
/*
 * Four vCPUs whose memory turns private and shared while they use it, and the
 * host reads it and plugs other memory. For a few seconds, or for
 * GMEM_STRESS_SECONDS. Every word is checked by whoever may see it.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "lab.h"

#define DEFAULT_SECONDS 3
#define VCPUS 4
#define AREA_PAGES 32		/* of each vCPU, in one region for all */
#define BASE ((uint64_t)1 << 30)
#define PLUGGED_GPA ((uint64_t)2 << 30)
#define LEAST_ROUNDS 20

struct stress {
	struct lab lab;
	struct gmem_region *region;
	struct gmem_plan *plan;
	uint64_t page;
	uint64_t end_ms;
	atomic_bool stop;
	atomic_ulong seen;	/* words that the host could read */
	atomic_ulong unseen;	/* and that were private */
	unsigned long plugs;
};

struct user {
	struct stress *stress;
	struct guest guest;
	unsigned int number;
	pthread_t thread;
	uint64_t random;
	unsigned long conversions;
	uint32_t values[AREA_PAGES];	/* what the guest must find */
	bool is_private[AREA_PAGES];
};

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* xorshift64: the same in every run */
static uint32_t pick(uint64_t *state, uint32_t count)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (uint32_t)(*state >> 16) % count;
}

static uint64_t gpa_of(const struct user *user, uint32_t page)
{
	return BASE + (user->number * AREA_PAGES + page) * user->stress->page;
}

/* A word says whose page it is in, and that it is shared: nobody else's must be seen. */
static uint32_t word(unsigned int number, uint32_t page, bool is_private, uint32_t random)
{
	return (random & 0xffff) << 16 | (uint32_t)is_private << 15 | number << 8 | page | 0x80;
}

/* ---- a vCPU: converts part of its area as a VMM does for it, then uses it ---- */

static void convert_some(struct user *user)
{
	struct stress *s = user->stress;
	uint32_t page = pick(&user->random, AREA_PAGES);
	uint32_t pages = 1 + pick(&user->random, AREA_PAGES - page);
	bool to_private = pick(&user->random, 2);

	OK(gmem_vm_convert(s->lab.vm, gpa_of(user, page), pages * s->page,
			   to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, NULL, NULL));
	for (uint32_t i = page; i < page + pages; i++) {
		if (user->is_private[i] != to_private)
			user->values[i] = 0;
		user->is_private[i] = to_private;
	}
	user->conversions++;
}

static void use_all(struct user *user)
{
	for (uint32_t i = 0; i < AREA_PAGES; i++) {
		GUEST_LOADS(&user->guest, gpa_of(user, i), user->values[i]);
		if (pick(&user->random, 2))
			continue;
		user->values[i] = word(user->number, i, user->is_private[i],
				       pick(&user->random, 65536));
		GUEST_STORES(&user->guest, gpa_of(user, i), user->values[i]);
	}
}

static void *run_user(void *data)
{
	struct user *user = data;

	while (user->conversions < LEAST_ROUNDS || now_ms() < user->stress->end_ms) {
		convert_some(user);
		use_all(user);
	}
	return NULL;
}

/* ---- the host ---- */

/* Every word that the host reads was stored in this page while it was shared. */
static void *run_reader(void *data)
{
	struct stress *s = data;
	struct gmem_view *view = NULL;
	uint64_t random = 99;
	uint32_t value;
	int err;

	OK(gmem_view_new(s->lab.vm, &view));
	while (!atomic_load(&s->stop)) {
		uint32_t number = pick(&random, VCPUS), page = pick(&random, AREA_PAGES);

		err = gmem_view_read(view, BASE + (number * AREA_PAGES + page) * s->page, &value,
				     sizeof(value), NULL);
		if (err == -EACCES) {
			atomic_fetch_add(&s->unseen, 1);
			continue;
		}
		CHECK_RESULT(err, 0);
		if (value && (value & 0xffff) != word(number, page, false, 0))
			FAIL("page %u of vCPU %u has 0x%x", page, number, value);
		atomic_fetch_add(&s->seen, 1);
		if (pick(&random, 64) == 0)
			sched_yield();
	}
	gmem_view_free(view);
	return NULL;
}

/* Regions come and go meanwhile, and take what is private with them. */
static void plug(struct stress *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *region = NULL;

	OK(gmem_region_add(s->lab.vm, PLUGGED_GPA, 8 * s->page, &opts, &region));
	OK(gmem_vm_convert(s->lab.vm, PLUGGED_GPA + s->page, 5 * s->page, GMEM_STATE_PRIVATE, NULL,
			   NULL));
	OK(gmem_region_remove(region));
	s->plugs++;
}

static unsigned int count_resident(const struct stress *s, uint64_t first, uint64_t count)
{
	unsigned char there[VCPUS * AREA_PAGES];
	unsigned int sum = 0;

	WORKS(mincore((char *)gmem_region_hva(s->region) + first * s->page, count * s->page, there));
	for (uint64_t i = 0; i < count; i++)
		sum += there[i] & 1;
	return sum;
}

/* Private pages have no memory on the host's side, shared pages have none in the file. */
static void check_memory(const struct stress *s, const struct user *users)
{
	uint64_t private_pages = 0, doubled = 0;

	for (unsigned int n = 0; n < VCPUS; n++) {
		for (uint32_t i = 0; i < AREA_PAGES; i++) {
			private_pages += users[n].is_private[i];
			if (users[n].is_private[i])
				doubled += count_resident(s, n * AREA_PAGES + i, 1);
		}
	}
	CHECK_EQ(doubled, 0);
	/* every page was loaded since */
	CHECK_EQ(allocated_pages(gmem_file_fd(gmem_region_file(s->region, NULL))), private_pages);
	note("%u pages private, none of them also shared, nor the reverse", (unsigned int)private_pages);
}

static void stress_new(struct stress *s, struct user *users)
{
	const char *text = getenv("GMEM_STRESS_SECONDS");
	unsigned long seconds = text ? strtoul(text, NULL, 10) : 0;

	lab_new(&s->lab, PRIVATE_VM);
	s->page = s->lab.page;
	require_backing(&s->lab.m, GMEM_BACKING_PRIVATE, &s->plan);
	s->region = lab_add(&s->lab, GMEM_BACKING_PRIVATE, BASE, VCPUS * AREA_PAGES, NULL);
	s->end_ms = now_ms() + 1000 * (seconds ? seconds : DEFAULT_SECONDS);
	for (unsigned int i = 0; i < VCPUS; i++) {
		users[i] = (struct user){ .stress = s, .number = i, .random = 77 + i };
		guest_join(&users[i].guest, &s->lab.guest, s->lab.m.kvm_fd, i + 1);
	}
}

TEST(guests_find_their_words_while_all_memory_is_converted)
{
	struct user users[VCPUS];
	struct stress s = { 0 };
	unsigned long conversions = 0;
	pthread_t reader;

	require_cachestat();
	stress_new(&s, users);
	OK(gmem_recovery_enable());
	CHECK_EQ(pthread_create(&reader, NULL, run_reader, &s), 0);
	for (unsigned int i = 0; i < VCPUS; i++)
		CHECK_EQ(pthread_create(&users[i].thread, NULL, run_user, &users[i]), 0);
	while (s.plugs < LEAST_ROUNDS || now_ms() < s.end_ms)
		plug(&s);
	for (unsigned int i = 0; i < VCPUS; i++) {
		CHECK_EQ(pthread_join(users[i].thread, NULL), 0);
		conversions += users[i].conversions;
	}
	atomic_store(&s.stop, true);
	CHECK_EQ(pthread_join(reader, NULL), 0);
	gmem_recovery_disable();
	check_memory(&s, users);
	note("%lu conversions, %lu words seen by the host, %lu private, %lu regions plugged",
	     conversions, atomic_load(&s.seen), atomic_load(&s.unseen), s.plugs);

	for (unsigned int i = 0; i < VCPUS; i++)
		guest_free(&users[i].guest);
	gmem_plan_free(s.plan);
	lab_free(&s.lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
