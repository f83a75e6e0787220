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

TEST(address_space_is_named)
{
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	set_limit(RLIMIT_AS, mapped_bytes() + 64 * MIB);
	check_refused_region(&lab, GIB, -ENOMEM, "RLIMIT_AS is 0x");
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("a sanitizer maps memory of its own, and ends the program where it cannot");
#endif
	lab_new(&lab, DEFAULT_VM);
	use_up_mappings();
	check_refused_region(&lab, MIB, -ENOMEM, "vm.max_map_count is ");
	lab_free(&lab);
}

TEST(locked_memory_is_named)
{
	struct lab lab;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("a sanitizer locks no memory, as its shadow is too large");
#endif
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

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
