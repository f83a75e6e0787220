/* SPDX-License-Identifier: MIT */
/* bench-core: who waits for whom, and how long */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench.h"
#include "core.h"

static void start(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *data)
{
	bench_must(-pthread_create(thread, attr, run, data), "pthread_create");
}

/* ---- a change beside storming vCPUs ---- */

#define MOST_STORMING	8
#define CHANGES		20
#define LONGEST		10	/* seconds: what is not done then is done without them */

struct storm {
	const struct core_vm *vm;
	const bool *is_over;
	double until;
	uint64_t base;
	uint64_t count;
};

static void *rage(void *data)
{
	struct storm *storm = data;

	for (uint64_t i = 0; !__atomic_load_n(storm->is_over, __ATOMIC_RELAXED); i++) {
		if (i % 256 == 0 && core_seconds() > storm->until)
			break;
		core_convert(storm->vm, storm->base + i % 256 * PAGE, PAGE, i / 256 % 2 == 0,
			     GMEM_DISCARD_NOW);
		storm->count++;
	}
	return NULL;
}

/* The worst of some splits where they rage, in milliseconds */
static double split_worst(struct gmem_region *region, double until)
{
	struct gmem_region *upper;
	double worst = 0, took;

	for (uint64_t i = CHANGES; i > 0 && core_seconds() < until; i--) {
		took = core_seconds();
		bench_gmem_must(gmem_region_split(region, i * MIB, &upper), "gmem_region_split");
		took = (core_seconds() - took) * 1000;
		worst = took > worst ? took : worst;
		usleep(20000);
	}
	return worst;
}

static void storm_with(unsigned int threads)
{
	struct storm storms[MOST_STORMING];
	pthread_t ids[MOST_STORMING];
	struct gmem_region *region;
	uint64_t conversions = 0;
	bool is_over = false;
	struct core_vm vm;
	double worst, took, until = core_seconds() + (bench_quick() ? LONGEST / 50.0 : LONGEST);

	core_vm_new(&vm);
	region = core_add(&vm, 0, 64 * MIB);
	for (unsigned int i = 0; i < threads; i++) {
		storms[i] = (struct storm){ .vm = &vm, .is_over = &is_over, .until = until,
					   .base = i * MIB };
		start(&ids[i], NULL, rage, &storms[i]);
	}
	usleep(100000);
	took = core_seconds();
	worst = split_worst(region, until);
	took = core_seconds() - took;
	__atomic_store_n(&is_over, true, __ATOMIC_RELAXED);
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(ids[i], NULL);
		conversions += storms[i].count;
	}
	printf("  %u threads, %8.0f conversions/s: worst of up to %d splits, ms", threads,
	       (double)conversions / took, CHANGES);
	bench_row("core/split/%u-threads", threads);
	bench_print_amount("ms", bench_single(worst), 0);
	printf("\n");
	core_vm_free(&vm);
}

void core_storms(size_t rounds)
{
	(void)rounds;
	printf("a region split while threads convert pages of it without pause, at most %d s\n", LONGEST);
	storm_with(0);
	storm_with(1);
	storm_with(4);
	storm_with(8);
}

/* ---- many vCPUs fault on one page ---- */

#define MOST_FAULTING	1024
#define KERNEL_MS	20

struct crowd {
	struct core_vm vm;
	pthread_barrier_t barrier;
};

static void *fault(void *data)
{
	struct crowd *crowd = data;

	pthread_barrier_wait(&crowd->barrier);
	core_convert(&crowd->vm, 0, PAGE, true, GMEM_DISCARD_NOW);
	return NULL;
}

static double seconds_of(const struct timeval *time)
{
	return (double)time->tv_sec + (double)time->tv_usec / 1e6;
}

static void fault_together(struct crowd *crowd, unsigned int threads)
{
	static pthread_t ids[MOST_FAULTING];
	struct rusage before, after;
	pthread_attr_t attr;
	double took;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	pthread_barrier_init(&crowd->barrier, NULL, threads + 1);
	for (unsigned int i = 0; i < threads; i++)
		start(&ids[i], &attr, fault, crowd);
	getrusage(RUSAGE_SELF, &before);
	pthread_barrier_wait(&crowd->barrier);
	took = core_seconds();
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	took = core_seconds() - took;
	getrusage(RUSAGE_SELF, &after);
	printf("  %4u threads: ms", threads);
	bench_row("core/one-page/%u-threads", threads);
	bench_print_amount("ms", bench_single(took * 1000), 0);
	printf(" CPU %9.1f ms, %ld context switches\n",
	       (seconds_of(&after.ru_utime) - seconds_of(&before.ru_utime) +
		seconds_of(&after.ru_stime) - seconds_of(&before.ru_stime)) * 1000,
	       after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw);
	fflush(stdout);
	pthread_barrier_destroy(&crowd->barrier);
	pthread_attr_destroy(&attr);
}

void core_one_page(size_t rounds)
{
	static struct crowd crowd;

	(void)rounds;
	printf("threads that convert one page at once, %d ms in the kernel\n", KERNEL_MS);
	core_vm_new(&crowd.vm);
	core_add(&crowd.vm, 0, GIB);
	for (unsigned int threads = 1; threads <= MOST_FAULTING; threads *= 32) {
		core_set_delays(KERNEL_MS * 1000, 0);
		fault_together(&crowd, threads);
		core_set_delays(0, 0);
		core_convert(&crowd.vm, 0, PAGE, false, GMEM_DISCARD_NOW);
	}
	core_vm_free(&crowd.vm);
}

/* ---- what a conversion elsewhere waits for ---- */

#define UNIT	(bench_quick() ? 16 * MIB : GIB)

struct scene {
	struct core_vm vm;
	struct gmem_region *large;	/* 2 GiB, populated */
	struct gmem_view *view;
	char *buffer;			/* 1 GiB */
	bool is_over;
	double worst;
	uint64_t count;
};

/* One page of another region, each millisecond */
static void *convert_elsewhere(void *data)
{
	struct scene *scene = data;
	double took;

	for (uint64_t i = 0; !__atomic_load_n(&scene->is_over, __ATOMIC_RELAXED); i++) {
		took = core_seconds();
		core_convert(&scene->vm, PAGE, PAGE, i % 2 == 0, GMEM_DISCARD_NOW);
		took = core_seconds() - took;
		scene->worst = took > scene->worst ? took : scene->worst;
		scene->count++;
		usleep(1000);
	}
	return NULL;
}

static void do_nothing(struct scene *scene)
{
	(void)scene;
	usleep(bench_quick() ? 1000 : 500000);
}

static void read_much(struct scene *scene)
{
	bench_gmem_must(gmem_view_read(scene->view, 4 * UNIT, scene->buffer, UNIT, NULL),
			"gmem_view_read");
}

static void query_nodes(struct scene *scene)
{
	uint64_t on_node[4];
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = on_node, .nodes = 4);

	bench_gmem_must(gmem_vm_numa(scene->vm.vm, 4 * UNIT, 2 * UNIT, &pages), "gmem_vm_numa");
}

static void add_slowly(struct scene *scene)
{
	core_set_delays(0, bench_quick() ? 1000 : 1000000);
	core_add(&scene->vm, TIB, PAGE);
	core_set_delays(0, 0);
}

static void discard_much(struct scene *scene)
{
	GMEM_OPTS(gmem_discard_opts, opts, .flags = 0);

	bench_gmem_must(gmem_vm_discard(scene->vm.vm, 4 * UNIT, 2 * UNIT, &opts, NULL), "gmem_vm_discard");
}

static void populate_much(struct scene *scene)
{
	bench_gmem_must(gmem_vm_populate(scene->vm.vm, 4 * UNIT, 2 * UNIT, NULL, NULL),
			"gmem_vm_populate");
}

static void remove_much(struct scene *scene)
{
	bench_gmem_must(gmem_region_remove(scene->large), "gmem_region_remove");
}

static void measure_beside(struct scene *scene, const char *what, void (*act)(struct scene *))
{
	pthread_t thread;
	double took;

	scene->is_over = false;
	scene->worst = 0;
	scene->count = 0;
	start(&thread, NULL, convert_elsewhere, scene);
	usleep(20000);
	took = core_seconds();
	act(scene);
	took = core_seconds() - took;
	__atomic_store_n(&scene->is_over, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	printf("  %-24s took %6.2f s: worst, ms", what, took);
	bench_row("core/wait/%s", what);
	bench_print_amount("ms", bench_single(scene->worst * 1000), 0);
	printf("\n");
}

void core_waits(size_t rounds)
{
	static struct scene scene;

	(void)rounds;
	core_vm_new(&scene.vm);
	core_add(&scene.vm, 0, UNIT);
	scene.large = core_add(&scene.vm, 4 * UNIT, 2 * UNIT);
	bench_gmem_must(gmem_view_new(scene.vm.vm, &scene.view), "gmem_view_new");
	scene.buffer = mmap(NULL, UNIT, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(scene.buffer == MAP_FAILED ? -1 : 0, "mmap");

	printf("a page converted elsewhere, each ms, beside\n");
	measure_beside(&scene, "nothing", do_nothing);
	measure_beside(&scene, "populate-2G", populate_much);
	measure_beside(&scene, "read-1G", read_much);
	measure_beside(&scene, "read-1G-again", read_much);
	munmap(scene.buffer, UNIT);
	measure_beside(&scene, "numa-2G", query_nodes);
	measure_beside(&scene, "add-1s-in-kernel", add_slowly);
	measure_beside(&scene, "discard-2G", discard_much);
	bench_gmem_must(gmem_vm_populate(scene.vm.vm, 4 * UNIT, 2 * UNIT, NULL, NULL), "gmem_vm_populate");
	measure_beside(&scene, "remove-2G", remove_much);
	gmem_view_free(scene.view);
	core_vm_free(&scene.vm);
}
