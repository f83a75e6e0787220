/* SPDX-License-Identifier: MIT */
/* Dumps of real memory: they agree with the kernel and change nothing */
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define PAGES 8

#define EVERY_WAY (~0u)
#define WITH_SHARED_FILE (1u << GMEM_BACKING_MAPPED | 1u << GMEM_BACKING_SHARED)

static char *dump(struct lab *lab)
{
	GMEM_OPTS(gmem_dump_opts, opts, .cell = lab->page);
	int fd = (int)WORKS(memfd_create("dump", MFD_CLOEXEC));
	char *text;
	off_t size;

	OK(gmem_vm_dump(lab->vm, fd, &opts));
	size = WORKS(lseek(fd, 0, SEEK_END));
	text = calloc(1, (size_t)size + 1);
	CHECK(text);
	CHECK_EQ(pread(fd, text, (size_t)size, 0), size);
	close(fd);
	return text;
}

/* Checks the range that begins at @gpa, but for its nodes, which depend on the machine. */
static void check_range(const char *text, uint64_t gpa, uint64_t size, uint64_t private,
			uint64_t shared_resident, uint64_t private_resident)
{
	char expected[256];

	snprintf(expected, sizeof(expected),
		 "\n  {\"gpa\":%" PRIu64 ",\"size\":%" PRIu64 ",\"private\":%" PRIu64
		 ",\"shared_resident\":%" PRIu64 ",\"private_resident\":%" PRIu64 ",\"nodes\":[",
		 gpa, size, private, shared_resident, private_resident);
	if (!strstr(text, expected))
		FAIL("there is no%s but\n%s", expected, text);
}

static unsigned int run_in_vm(void (*run)(struct lab *, uint32_t), uint32_t ways, int type)
{
	unsigned int count = 0;
	struct lab lab;

	if (!expect_vm(type)->exists)
		return 0;
	for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_PRIVATE; backing++) {
		if (!(expect_vm(type)->backings & ways & 1u << backing))
			continue;
		in_case("%s memory, VM type %d", gmem_backing_name(backing), type);
		lab_new(&lab, type);
		run(&lab, backing);
		lab_free(&lab);
		count++;
	}
	return count;
}

static void for_each_way(uint32_t ways, void (*run)(struct lab *, uint32_t))
{
	if (run_in_vm(run, ways, DEFAULT_VM) + run_in_vm(run, ways, PRIVATE_VM) == 0)
		skip("no VM here has any of the ways of backing this is about");
}

/* ---- what it says ---- */

static void tells_touched_pages(struct lab *lab, uint32_t backing)
{
	const char *region = gmem_backing_name(backing);
	uint64_t page = lab->page;
	char part[64], *text;

	if (backing == GMEM_BACKING_PRIVATE)
		require_cachestat();
	memset((char *)gmem_region_hva(lab_add(lab, backing, BASE, PAGES, NULL)) + 2 * page, 1,
	       3 * page);
	text = dump(lab);
	snprintf(part, sizeof(part), "\"backing\":\"%s\"", region);
	CHECK(strstr(text, part));
	check_range(text, BASE, 2 * page, 0, 0, 0);
	check_range(text, BASE + 2 * page, 3 * page, 0, 3 * page, 0);
	check_range(text, BASE + 5 * page, 3 * page, 0, 0, 0);
	free(text);
}

TEST(pages_that_were_touched_are_told)
{
	for_each_way(EVERY_WAY, tells_touched_pages);
}

static void tells_what_guest_stored(struct lab *lab, uint32_t backing)
{
	uint64_t page = lab->page;
	char *text;

	lab_add(lab, backing, BASE, PAGES, NULL);
	GUEST_STORES(&lab->guest, BASE + 6 * page, 0x600df00d);
	text = dump(lab);
	check_range(text, BASE, 6 * page, 0, 0, 0);
	check_range(text, BASE + 6 * page, page, 0, page, 0);
	free(text);
}

TEST(pages_that_the_guest_touched_are_told)
{
	for_each_way(WITH_SHARED_FILE, tells_what_guest_stored);
}

TEST(both_states_and_both_sides_are_told)
{
	struct gmem_region *region;
	struct lab lab;
	uint64_t page;
	char *text;

	if (!expect_vm(PRIVATE_VM)->exists)
		skip("this kernel has no VM with private memory");
	require_cachestat();
	lab_new(&lab, PRIVATE_VM);
	page = lab.page;
	region = lab_add(&lab, GMEM_BACKING_PRIVATE, BASE, PAGES, NULL);
	memset(gmem_region_hva(region), 1, 2 * page);
	OK(gmem_vm_convert(lab.vm, BASE + 4 * page, 3 * page, GMEM_STATE_PRIVATE, NULL, NULL));
	OK(gmem_file_allocate(gmem_region_file(region, NULL), 4 * page, 2 * page, NULL));

	text = dump(&lab);
	check_range(text, BASE, 2 * page, 0, 2 * page, 0);
	check_range(text, BASE + 2 * page, 2 * page, 0, 0, 0);
	check_range(text, BASE + 4 * page, 2 * page, 2 * page, 0, 2 * page);
	check_range(text, BASE + 6 * page, page, page, 0, 0);
	check_range(text, BASE + 7 * page, page, 0, 0, 0);
	free(text);
	lab_free(&lab);
}

/* ---- what it leaves alone ---- */

static void leaves_holes(struct lab *lab, uint32_t backing)
{
	struct gmem_region *region = lab_add(lab, backing, BASE, 512, NULL);
	int fd = gmem_file_fd(gmem_region_file(region, NULL));

	require_cachestat();
	memset((char *)gmem_region_hva(region) + 99 * lab->page, 1, 7 * lab->page);
	CHECK_EQ(allocated_pages(fd), 7);
	free(dump(lab));
	CHECK_EQ(allocated_pages(fd), 7);
}

TEST(a_dump_allocates_nothing)
{
	for_each_way(WITH_SHARED_FILE, leaves_holes);
}

TEST(a_dump_leaves_no_fd_and_no_mapping)
{
	unsigned int fds, mappings;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	require_guest_memfd(&lab.m);
	memset(gmem_region_hva(lab_add(&lab, GMEM_BACKING_SHARED, BASE, PAGES, NULL)), 1, lab.page);
	fds = count_open_fds();
	mappings = count_mappings("kvm-gmem");
	free(dump(&lab));
	CHECK_EQ(count_open_fds(), fds);
	CHECK_EQ(count_mappings("kvm-gmem"), mappings);
	lab_free(&lab);
}

/* Every cell is unlike its neighbours, and numbers are long. gmem_vm_serve_dump() has the sizes. */
static void is_no_larger_than_promised(struct lab *lab, uint32_t backing)
{
	const uint64_t cell = 16 * MIB, leases = 100;
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "somebody");
	struct gmem_lease *lease[100];
	int fd = (int)WORKS(memfd_create("dump", MFD_CLOEXEC));
	uint64_t gpa = 1ull << 36, size = 90 * KIB + 600 + leases * 70;
	char *hva;

	hva = gmem_region_hva(lab_add(lab, backing, gpa, 512 * cell / lab->page, NULL));
	for (uint64_t i = 0; i < 512; i += 2)
		memset(hva + i * cell, 1, (1 + i / 2 % 3) * lab->page);
	for (uint64_t i = 0; i < leases; i++)
		OK(gmem_lease_new(lab->vm, gpa + i * lab->page, lab->page, &opts, &lease[i]));
	OK(gmem_vm_dump(lab->vm, fd, NULL));
	note("%" PRIu64 " of at most %" PRIu64 " bytes", (uint64_t)WORKS(lseek(fd, 0, SEEK_END)), size);
	CHECK(WORKS(lseek(fd, 0, SEEK_END)) <= (long)size);
	CHECK(WORKS(lseek(fd, 0, SEEK_END)) > (long)size / 2);
	for (uint64_t i = 0; i < leases; i++)
		gmem_lease_free(lease[i]);
	close(fd);
}

TEST(a_dump_is_no_larger_than_the_header_says)
{
	if (access("/sys/devices/system/node/node1", F_OK) == 0)
		skip("more than one NUMA node");
	for_each_way(1u << GMEM_BACKING_HOST | WITH_SHARED_FILE, is_no_larger_than_promised);
}

/* ---- readers ---- */

TEST(a_reader_that_has_gone_is_an_error_and_no_signal)
{
	struct lab lab;
	sigset_t pending;
	int fds[2];

	lab_new(&lab, DEFAULT_VM);
	WORKS(pipe2(fds, O_CLOEXEC));
	close(fds[0]);
	/* SIGPIPE would end this process. */
	REFUSED(gmem_vm_dump(lab.vm, fds[1], NULL), -EPIPE);
	sigpending(&pending);
	CHECK(!sigismember(&pending, SIGPIPE));
	close(fds[1]);
	lab_free(&lab);
}

TEST(a_SIGPIPE_of_the_program_stays)
{
	sigset_t mine, pending;
	struct lab lab;
	int fds[2];

	lab_new(&lab, DEFAULT_VM);
	sigemptyset(&mine);
	sigaddset(&mine, SIGPIPE);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &mine, NULL), 0);
	WORKS(raise(SIGPIPE));

	WORKS(pipe2(fds, O_CLOEXEC));
	close(fds[0]);
	REFUSED(gmem_vm_dump(lab.vm, fds[1], NULL), -EPIPE);
	sigpending(&pending);
	CHECK(sigismember(&pending, SIGPIPE));
	close(fds[1]);
	lab_free(&lab);
}

/* Each is accepted, gets what it takes, and leaves neither an fd nor a signal behind. */
TEST(readers_that_connect_and_go_raise_no_signal)
{
	struct lab lab;
	sigset_t pending;
	int sock, reader = -1, next;

	lab_new(&lab, DEFAULT_VM);
	sock = lab_listen();
	for (int i = 0; i < 8; i++) {
		reader = lab_connect(sock);
		close(reader);
	}
	for (int i = 0; i < 8; i++)
		REFUSED(gmem_vm_serve_dump(lab.vm, sock, NULL, 1000), -EPIPE);
	CHECK_RESULT(gmem_vm_serve_dump(lab.vm, sock, NULL, 1000), 0);
	sigpending(&pending);
	CHECK(!sigismember(&pending, SIGPIPE));
	next = dup(sock);
	CHECK_EQ(next, reader);
	close(next);
	close(sock);
	lab_free(&lab);
}

TEST(a_file_at_its_limit_is_an_error_and_no_signal)
{
	struct rlimit before, small;
	struct lab lab;
	sigset_t pending;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	fd = memfd_create("dump", MFD_CLOEXEC);
	WORKS(fd);
	WORKS(getrlimit(RLIMIT_FSIZE, &before));
	small = before;
	small.rlim_cur = 16;
	WORKS(setrlimit(RLIMIT_FSIZE, &small));
	REFUSED(gmem_vm_dump(lab.vm, fd, NULL), -EFBIG);
	CHECK(strstr(gmem_last_error(), "RLIMIT_FSIZE ends files at 0x10"));
	sigpending(&pending);
	CHECK(!sigismember(&pending, SIGXFSZ));
	WORKS(setrlimit(RLIMIT_FSIZE, &before));
	close(fd);
	lab_free(&lab);
}

TEST(a_full_pipe_that_does_not_block_is_an_error)
{
	static char byte[65536];
	struct lab lab;
	int fds[2];

	lab_new(&lab, DEFAULT_VM);
	WORKS(pipe2(fds, O_CLOEXEC | O_NONBLOCK));
	while (write(fds[1], byte, sizeof(byte)) > 0)
		;
	REFUSED(gmem_vm_dump(lab.vm, fds[1], NULL), -EAGAIN);
	close(fds[0]);
	close(fds[1]);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
