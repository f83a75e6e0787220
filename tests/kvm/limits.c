/* SPDX-License-Identifier: MIT */
/* Limits of the process: a refusal says which one is reached, and its number */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lab.h"

#define BASE GIB

static void check_says(const char *words)
{
	note("%s", gmem_last_error());
	if (!strstr(gmem_last_error(), words))
		FAIL("the sentence does not say \"%s\"", words);
}

static void set_limit(int resource, uint64_t limit)
{
	struct rlimit both = { .rlim_cur = limit, .rlim_max = limit };

	WORKS(setrlimit((__rlimit_resource_t)resource, &both));
}

TEST(number_of_files_is_named)
{
	struct gmem_export *exporter;
	unsigned int count = 0;
	struct lab lab;
	int fds[64];

	lab_new(&lab, DEFAULT_VM);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 16, NULL);
	set_limit(RLIMIT_NOFILE, ARRAY_SIZE(fds));
	while ((fds[count] = dup(0)) >= 0)
		count++;
	CHECK_EQ(errno, EMFILE);
	REFUSED(gmem_export_new(lab.vm, NULL, &exporter), -EMFILE);
	check_says("RLIMIT_NOFILE is 64");
	while (count)
		close(fds[--count]);
	lab_free(&lab);
}

static uint64_t mapped_bytes(void)
{
	FILE *statm = fopen("/proc/self/statm", "r");
	unsigned long long pages = 0;

	CHECK(statm);
	CHECK_EQ(fscanf(statm, "%llu", &pages), 1);
	fclose(statm);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void check_refused_region(struct lab *lab, uint64_t size, int err, const char *words)
{
	struct gmem_plan *plan;
	struct gmem_region *region;

	require_backing(&lab->m, GMEM_BACKING_HOST, &plan);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	REFUSED(gmem_region_add(lab->vm, BASE, size, &opts, &region), err);
	check_says(words);
	gmem_plan_free(plan);
}

static void skip_with_a_sanitizer(const char *which)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("a sanitizer %s", which);
#else
	(void)which;
#endif
}

TEST(address_space_is_named)
{
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	set_limit(RLIMIT_AS, mapped_bytes() + 64 * MIB);
	check_refused_region(&lab, GIB, -ENOMEM, "RLIMIT_AS is 0x");
	lab_free(&lab);
}

TEST(data_is_named)
{
	struct lab lab;

	skip_with_a_sanitizer("maps memory of its own, and ends the program where it cannot");
	lab_new(&lab, DEFAULT_VM);
	set_limit(RLIMIT_DATA, 256 * MIB);
	check_refused_region(&lab, GIB, -ENOMEM, "RLIMIT_DATA is 0x10000000");
	lab_free(&lab);
}

/* A refusal that another moment would not give, and nothing freed */
TEST(number_of_files_is_named_where_mappings_cannot_be_asked_for)
{
	uint64_t size = 16 * page_size();
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct gmem_plan *plan;
	unsigned int count = 0;
	struct lab lab;
	int fds[64];
	char *hva;

	lab_new(&lab, DEFAULT_VM);
	hva = gmem_region_hva(lab_add(&lab, GMEM_BACKING_HOST, BASE, 16, NULL));
	memset(hva, 1, size);
	require_backing(&lab.m, GMEM_BACKING_HOST, &plan);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_RESERVED, .plan = plan);
	opts.hva = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(opts.hva != MAP_FAILED);

	set_limit(RLIMIT_NOFILE, ARRAY_SIZE(fds));
	while ((fds[count] = dup(0)) >= 0)
		count++;
	REFUSED(gmem_vm_discard(lab.vm, BASE, size, NULL, &footprint), -EMFILE);
	check_says("RLIMIT_NOFILE is 64");
	CHECK_EQ(footprint.done, 0);
	for (uint64_t i = 0; i < size; i++)
		CHECK_EQ(hva[i], 1);
	REFUSED(gmem_region_add(lab.vm, 2 * BASE, size, &opts, &region), -EMFILE);
	check_says("RLIMIT_NOFILE is 64");

	while (count)
		close(fds[--count]);
	OK(gmem_region_add(lab.vm, 2 * BASE, size, &opts, &region));
	OK(gmem_vm_discard(lab.vm, BASE, size, NULL, &footprint));
	CHECK_EQ(footprint.done, size);
	gmem_plan_free(plan);
	lab_free(&lab);
}

/* Neighbours that differ in what they allow are mappings of their own. */
static void use_up_mappings(void)
{
	const int prots[] = { PROT_NONE, PROT_READ };
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	for (unsigned int i = 0; i < 200000; i++)
		if (mmap(NULL, page, prots[i % 2], MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
			return;
	skip("200000 mappings are not too many here");
}

TEST(number_of_mappings_is_named)
{
	struct lab lab;

	skip_with_a_sanitizer("maps memory of its own, and ends the program where it cannot");
	lab_new(&lab, DEFAULT_VM);
	use_up_mappings();
	check_refused_region(&lab, MIB, -ENOMEM, "vm.max_map_count is ");
	lab_free(&lab);
}

TEST(locked_memory_is_named)
{
	struct lab lab;

	skip_with_a_sanitizer("locks no memory, as its shadow is too large");
	lab_new(&lab, DEFAULT_VM);
	/* Who may exceed the limit, as root may, has none. */
	set_limit(RLIMIT_MEMLOCK, 4 * MIB);
	WORKS(mlockall(MCL_FUTURE));
	WORKS(setresgid(65534, 65534, 65534));
	WORKS(setresuid(65534, 65534, 65534));
	check_refused_region(&lab, GIB, -EAGAIN, "RLIMIT_MEMLOCK is 0x400000");
	munlockall();
	lab_free(&lab);
}

TEST(size_of_a_file_is_named)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	require_backing(&lab.m, GMEM_BACKING_HOST, &plan);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .memory = &memory);
	set_limit(RLIMIT_FSIZE, MIB);
	REFUSED(gmem_region_add(lab.vm, BASE, 2 * MIB, &opts, &region), -EFBIG);
	check_says("RLIMIT_FSIZE is 0x100000");
	gmem_plan_free(plan);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
