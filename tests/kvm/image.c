/* SPDX-License-Identifier: MIT */
/*
 * Guest memory from files and into images, on a real kernel: real rings, pipes,
 * disks that are full, writers that die. What comes back is always compared bit
 * for bit.
 */
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define PAGES 200
#define BLOCK 4096

static const uint32_t backings[] = { GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED, GMEM_BACKING_HOST };

/* The contents of a block by @seed: nothing, a little, or much */
static void expected_block(unsigned seed, uint64_t block, unsigned char *bytes)
{
	unsigned x = (unsigned)block * 2654435761u ^ seed * 31337u;

	memset(bytes, 0, BLOCK);
	x = (x ^ x >> 15) * 2246822519u;
	if (x % 3 == 1)
		bytes[(x >> 4) % BLOCK] = (unsigned char)(x >> 20 | 1);
	for (unsigned i = 0; i < BLOCK && x % 3 == 2; i++)
		bytes[i] = (unsigned char)(x >> i % 24);
}

static bool is_empty_block(const unsigned char *bytes)
{
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, BLOCK - 1) == 0;
}

static void fill(void *memory, uint64_t size, unsigned seed)
{
	unsigned char bytes[BLOCK];

	for (uint64_t at = 0; at < size; at += BLOCK) {
		expected_block(seed, at / BLOCK, bytes);
		if (!is_empty_block(bytes))
			memcpy((char *)memory + at, bytes, BLOCK);
	}
}

static void check_memory(const void *memory, uint64_t size, unsigned seed)
{
	unsigned char bytes[BLOCK];

	for (uint64_t at = 0; at < size; at += BLOCK) {
		expected_block(seed, at / BLOCK, bytes);
		if (memcmp((const char *)memory + at, bytes, BLOCK) != 0)
			FAIL("the block at 0x%llx is not what it was", (unsigned long long)at);
	}
}

/* pages of the host that hold anything */
static uint64_t pages_in_use(uint64_t size, unsigned seed)
{
	uint64_t per_page = page_size() / BLOCK, count = 0;
	unsigned char bytes[BLOCK];

	for (uint64_t page = 0; page < size / page_size(); page++) {
		bool used = false;

		for (uint64_t i = 0; i < per_page; i++) {
			expected_block(seed, page * per_page + i, bytes);
			used |= !is_empty_block(bytes);
		}
		count += used;
	}
	return count;
}

static int new_file(void)
{
	return (int)WORKS(memfd_create("image", MFD_CLOEXEC));
}

/* One region of host memory, which every VM can have */
static struct gmem_region *new_guest(struct lab *lab, unsigned seed)
{
	struct gmem_region *region;

	lab_new(lab, DEFAULT_VM);
	region = lab_add(lab, GMEM_BACKING_HOST, BASE, PAGES, NULL);
	fill(gmem_region_hva(region), gmem_region_size(region), seed);
	return region;
}

/* A region of this backing, unless the VM cannot have it */
static bool begin_with(struct lab *lab, uint32_t backing, struct gmem_region **ret)
{
	in_case("backing %s", gmem_backing_name(backing));
	if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
		return false;
	lab_new(lab, DEFAULT_VM);
	*ret = lab_add(lab, backing, BASE, PAGES, NULL);
	return true;
}

static struct gmem_transfer_result no_result(void)
{
	return (struct gmem_transfer_result){ .size = sizeof(struct gmem_transfer_result) };
}

/* ---- load ---- */

TEST(a_file_is_loaded_and_the_guest_sees_it)
{
	for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
		struct gmem_transfer_result result = no_result();
		struct gmem_region *region;
		unsigned char bytes[BLOCK];
		struct lab lab;
		uint64_t size;
		int fd;

		if (!begin_with(&lab, backings[i], &region))
			continue;
		size = gmem_region_size(region);

		/* with holes where there is nothing */
		fd = new_file();
		WORKS(ftruncate(fd, (off_t)size));
		for (uint64_t at = 0; at < size; at += BLOCK) {
			expected_block(1, at / BLOCK, bytes);
			if (!is_empty_block(bytes))
				WORKS(pwrite(fd, bytes, BLOCK, (off_t)at));
		}
		OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, NULL, &result));
		CHECK_EQ(result.data_bytes + result.zero_bytes, size);
		if (backings[i] != GMEM_BACKING_HOST) {
			require_cachestat();
			CHECK_EQ(allocated_pages(gmem_file_fd(gmem_region_file(region, NULL))),
				 pages_in_use(size, 1));
		}
		check_memory(gmem_region_hva(region), size, 1);
		for (uint64_t at = 0; at < 20 * BLOCK; at += BLOCK) {
			uint32_t word;

			expected_block(1, at / BLOCK, bytes);
			memcpy(&word, bytes + 64, sizeof(word));
			GUEST_LOADS(&lab.guest, BASE + at + 64, word);
		}

		/* over other contents, and from anywhere to anywhere */
		memset(gmem_region_hva(region), 0x77, size);
		OK(gmem_vm_load(lab.vm, BASE, fd, 0, size, NULL, &result));
		check_memory(gmem_region_hva(region), size, 1);
		OK(gmem_vm_load(lab.vm, BASE + 12345, fd, 777, 99999, NULL, &result));
		for (uint64_t at = 0; at < 99999; at++) {
			expected_block(1, (777 + at) / BLOCK, bytes);
			CHECK_EQ(((unsigned char *)gmem_region_hva(region))[12345 + at],
				 bytes[(777 + at) % BLOCK]);
		}
		close(fd);
		lab_free(&lab);
	}
}

/* ---- save and restore ---- */

TEST(what_was_saved_comes_back_in_another_vm_bit_for_bit)
{
	for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
		struct gmem_transfer_result out = no_result(), in = no_result();
		struct gmem_region *region;
		struct lab lab;
		uint64_t size, pages = 0;
		int fd;

		if (!begin_with(&lab, backings[i], &region))
			continue;
		fd = new_file();
		size = gmem_region_size(region);
		fill(gmem_region_hva(region), size, 2);
		GUEST_STORES(&lab.guest, BASE + 128, 0x12345678);
		GUEST_STORES(&lab.guest, BASE + 128, 0);

		if (backings[i] != GMEM_BACKING_HOST) {
			require_cachestat();
			pages = allocated_pages(gmem_file_fd(gmem_region_file(region, NULL)));
		}
		OK(gmem_vm_save(lab.vm, fd, NULL, &out));
		if (backings[i] != GMEM_BACKING_HOST)
			CHECK_EQ(allocated_pages(gmem_file_fd(gmem_region_file(region, NULL))), pages);
		note("%s: %llu bytes of data, %llu of the image, through %s",
		     gmem_backing_name(backings[i]), (unsigned long long)out.data_bytes,
		     (unsigned long long)out.file_bytes,
		     out.engine == GMEM_ENGINE_IO_URING ? "io_uring" : "read and write");
		check_memory(gmem_region_hva(region), size, 2);
		lab_free(&lab);

		lab_new(&lab, DEFAULT_VM);
		region = lab_add(&lab, backings[i], BASE, PAGES, NULL);
		OK(gmem_image_verify(fd, NULL, NULL));
		OK(gmem_vm_restore(lab.vm, fd, NULL, &in));
		CHECK_EQ(in.data_bytes, out.data_bytes);
		CHECK_EQ(in.zero_bytes, out.zero_bytes);
		if (backings[i] != GMEM_BACKING_HOST)
			CHECK_EQ(allocated_pages(gmem_file_fd(gmem_region_file(region, NULL))),
				 pages_in_use(size, 2));
		check_memory(gmem_region_hva(region), size, 2);
		GUEST_LOADS(&lab.guest, BASE + 128, ((uint32_t *)gmem_region_hva(region))[32]);

		memset(gmem_region_hva(region), 0x77, size);
		OK(gmem_vm_restore(lab.vm, fd, NULL, &in));
		check_memory(gmem_region_hva(region), size, 2);
		close(fd);
		lab_free(&lab);
	}
}

/* ---- which pages there are ---- */

/* Enough for the page tables to be asked; one page in so many is used, and not all are mapped. */
#define MANY_PAGES 2048

static const struct {
	unsigned int one_in;
	uint64_t unmapped, count;	/* pages */
} usages[] = {
	{ 1, 0, 0 }, { 1, 0, MANY_PAGES }, { 1, 1000, 1 }, { 8, 0, 0 }, { 8, 0, MANY_PAGES }, { 8, 512, 700 },
	{ 3, 0, 1 }, { 1000, 1000, 1 }, { MANY_PAGES, 0, 0 },
};

static void check_usage(struct lab *lab, struct gmem_region *region, unsigned int one_in, uint64_t unmapped,
			uint64_t count)
{
	uint64_t page = page_size(), size = gmem_region_size(region);
	struct gmem_transfer_result result = no_result();
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	char *hva = gmem_region_hva(region);
	int fd = new_file();

	WORKS(madvise(hva, size, MADV_NOHUGEPAGE));
	for (uint64_t i = 0; i < MANY_PAGES; i += one_in)
		hva[i * page] = 1;
	if (count)
		WORKS(madvise(hva + unmapped * page, count * page, MADV_DONTNEED));

	OK(gmem_vm_stats(lab->vm, &stats));
	CHECK_EQ(stats.resident_shared, (MANY_PAGES + one_in - 1) / one_in * page);
	OK(gmem_vm_save(lab->vm, fd, NULL, &result));
	CHECK_EQ(result.data_bytes, (MANY_PAGES + one_in - 1) / one_in * BLOCK);
	CHECK_EQ(result.data_bytes + result.zero_bytes, size);
	OK(gmem_vm_stats(lab->vm, &stats));
	CHECK_EQ(stats.resident_shared, (MANY_PAGES + one_in - 1) / one_in * page);
	close(fd);
}

TEST(pages_are_found_mapped_or_not)
{
	static const uint32_t all[] = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST };

	require_cachestat();
	for (size_t i = 0; i < ARRAY_SIZE(all) * ARRAY_SIZE(usages); i++) {
		uint32_t backing = all[i % ARRAY_SIZE(all)];
		size_t u = i / ARRAY_SIZE(all);
		struct gmem_region *region;
		struct lab lab;

		/* What is private memory's own is gone when it is unmapped. */
		if (backing == GMEM_BACKING_HOST && usages[u].count)
			continue;
		if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
			continue;
		in_case("backing %s, usage %zu", gmem_backing_name(backing), u);
		lab_new(&lab, DEFAULT_VM);
		region = lab_add(&lab, backing, BASE, MANY_PAGES, NULL);
		check_usage(&lab, region, usages[u].one_in, usages[u].unmapped, usages[u].count);
		lab_free(&lab);
	}
}

TEST(private_ranges_are_declared_and_not_in_it)
{
	GMEM_OPTS(gmem_transfer_opts, omit, .flags = GMEM_TRANSFER_OMIT_PRIVATE);
	struct gmem_transfer_result result = no_result();
	struct gmem_region *region;
	struct lab lab;
	uint64_t page;
	char *hva;
	int fd = new_file();

	lab_new(&lab, PRIVATE_VM);
	page = lab.page;
	region = lab_add(&lab, GMEM_BACKING_PRIVATE, BASE, 32, NULL);
	hva = gmem_region_hva(region);
	memset(hva, 1, 32 * page);
	OK(gmem_vm_convert(lab.vm, BASE + 8 * page, 4 * page, GMEM_STATE_PRIVATE, NULL, NULL));
	GUEST_STORES(&lab.guest, BASE + 8 * page, 0xabcd);

	REFUSED(gmem_vm_save(lab.vm, fd, NULL, NULL), -EACCES);
	OK(gmem_vm_save(lab.vm, fd, &omit, &result));
	CHECK_EQ(result.private_bytes, 4 * page);
	CHECK_EQ(result.data_bytes, 28 * page);

	memset(hva, 2, 8 * page);
	REFUSED(gmem_vm_restore(lab.vm, fd, NULL, NULL), -EACCES);
	OK(gmem_vm_restore(lab.vm, fd, &omit, &result));
	CHECK_EQ(hva[0], 1);
	CHECK_EQ(hva[31 * page], 1);
	GUEST_LOADS(&lab.guest, BASE + 8 * page, 0xabcd);
	close(fd);
	lab_free(&lab);
}

/* ---- how it goes ---- */

/* ---- what a core dump has ---- */

#define PATTERN 64

/* Never as a whole in memory of the test */
static unsigned char pattern(uint64_t at)
{
	return (unsigned char)((at % PATTERN * 37 + 11) ^ 0xa5);
}

/* The heap has bytes that are nobody's. */
__attribute__((no_sanitize("address")))
static bool is_pattern(const volatile unsigned char *bytes)
{
	for (unsigned int i = 0; i < PATTERN; i++)
		if (bytes[i] != pattern(i))
			return false;
	return true;
}

/* Is the pattern in heap or other memory without a file that is not left out of core dumps? */
static bool dump_has_pattern(void)
{
	struct { uintptr_t start, end; } found[512], now = { 0, 0 };
	FILE *smaps = fopen("/proc/self/smaps", "re");
	unsigned long start, end, inode = 1;
	char line[512], name[32] = "", mode[5];
	unsigned int count = 0;

	CHECK(smaps);
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &start, &end, mode, &inode) == 4) {
			now.start = start;
			now.end = end;
			name[0] = '\0';
			(void)sscanf(line, "%*s %*s %*s %*s %*s %31s", name);
		}
		/* A sanitizer's shadow is larger, and empty. */
		if (strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " rd ") && !strstr(line, " dd") && !inode &&
		    (!name[0] || strcmp(name, "[heap]") == 0) && now.end - now.start < (64 << 20) && count < 512) {
			found[count].start = now.start;
			found[count++].end = now.end;
		}
	}
	fclose(smaps);
	for (unsigned int i = 0; i < count; i++)
		for (uintptr_t at = found[i].start; at + PATTERN <= found[i].end; at += 8)
			if (is_pattern((const unsigned char *)at))
				return true;
	return false;
}

/* At every step, and afterwards, when the heap is used for something else */
static void transfer_and_look(int err, struct gmem_transfer *transfer)
{
	int ret;

	OK(err);
	do {
		ret = gmem_transfer_step(transfer, 1);
		CHECK(ret >= 0);
		CHECK(!dump_has_pattern());
	} while (ret);
	OK(gmem_transfer_free(transfer));
	CHECK(!dump_has_pattern());
}

TEST(no_copy_of_guest_memory_is_left_for_core_dumps)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING };

	for (unsigned int i = 0; i < 2; i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i]);
		struct gmem_transfer *transfer = NULL;
		struct gmem_region *region;
		unsigned char *memory;
		struct lab lab;
		int image = new_file(), err;

		region = new_guest(&lab, 1);
		memory = gmem_region_hva(region);
		for (uint64_t at = 0; at < gmem_region_size(region); at++)
			memory[at] = pattern(at);
		CHECK(!dump_has_pattern());
		err = gmem_vm_save_begin(lab.vm, image, &opts, &transfer);
		transfer_and_look(err, transfer);
		err = gmem_vm_restore_begin(lab.vm, image, &opts, &transfer);
		transfer_and_look(err, transfer);
		CHECK(is_pattern(memory));
		close(image);
		lab_free(&lab);
	}
}

/* In steps: a call that waits makes no ring for so little. */
static void save_in_steps(struct gmem_vm *vm, int fd, struct gmem_transfer_result *result)
{
	struct gmem_transfer *transfer;
	int ret;

	OK(gmem_vm_save_begin(vm, fd, NULL, &transfer));
	do {
		ret = gmem_transfer_step(transfer, 1);
	} while (ret > 0);
	OK(ret);
	OK(gmem_transfer_get_result(transfer, result));
	OK(gmem_transfer_free(transfer));
}

TEST(io_uring_is_used_where_the_report_says_it_may_be)
{
	struct gmem_transfer_result result = no_result();
	struct gmem_finding finding;
	struct gmem_region *region;
	struct lab lab;
	int fd = new_file();

	region = new_guest(&lab, 3);
	save_in_steps(lab.vm, fd, &result);
	if (result.no_ring == -ENOTSUP)
		skip("libgmem was built without liburing");
	OK(gmem_caps_get(gmem_vm_caps(lab.vm), GMEM_CAP_IO_URING, &finding));
	CHECK_EQ(result.engine == GMEM_ENGINE_IO_URING, finding.answer == GMEM_YES);
	CHECK_EQ(result.engine == GMEM_ENGINE_IO_URING, result.no_ring == 0);
	memset(gmem_region_hva(region), 0, gmem_region_size(region));
	OK(gmem_vm_restore(lab.vm, fd, NULL, &result));
	check_memory(gmem_region_hva(region), gmem_region_size(region), 3);
	close(fd);
	lab_free(&lab);
}

/* Also where there is no io_uring, or where it is of no use, as for O_NONBLOCK */
TEST(a_reader_that_has_gone_raises_no_signal)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING };
	struct lab lab;

	new_guest(&lab, 6);
	for (unsigned way = 0; way < 6; way++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[way % 2]);
		sigset_t pending;
		int fds[2];

		in_case("way %u", way);
		if (way < 4)
			WORKS(pipe2(fds, way < 2 ? 0 : O_NONBLOCK));
		else
			WORKS(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
		close(fds[0]);
		/* SIGPIPE would end this process. */
		REFUSED(gmem_vm_save(lab.vm, fds[1], &opts, NULL), -EPIPE);
		sigpending(&pending);
		CHECK(!sigismember(&pending, SIGPIPE));
		close(fds[1]);
	}
	lab_free(&lab);
}

/* Refuses io_uring, as container runtimes do. */
static void forbid_io_uring(void)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = ARRAY_SIZE(rules), .filter = rules };

	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		skip("this kernel has no seccomp filters");
}

TEST(without_io_uring_it_reads_and_writes_and_says_so)
{
	struct gmem_transfer_result result = no_result();
	struct gmem_region *region;
	struct lab lab;
	int fd = new_file();

	region = new_guest(&lab, 4);
	forbid_io_uring();
	save_in_steps(lab.vm, fd, &result);
	CHECK_EQ(result.engine, GMEM_ENGINE_PLAIN);
	CHECK(result.no_ring == -EPERM || result.no_ring == -ENOTSUP);
	memset(gmem_region_hva(region), 0x55, gmem_region_size(region));
	OK(gmem_vm_restore(lab.vm, fd, NULL, &result));
	CHECK_EQ(result.engine, GMEM_ENGINE_PLAIN);
	check_memory(gmem_region_hva(region), gmem_region_size(region), 4);
	close(fd);
	lab_free(&lab);
}

/* A disk: a block device of memory, or a file where this machine keeps temporary ones */
static int open_disk(void)
{
	int fd = open("/dev/ram0", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fd = open("/var/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	if (fd < 0)
		skip("there is neither /dev/ram0 nor a file system in /var/tmp");
	return fd;
}

TEST(a_disk_is_read_and_written_past_the_page_cache)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_DIRECT, GMEM_TRANSFER_NO_RING };
	struct gmem_region *region;
	int fd = open_disk();
	struct lab lab;

	region = new_guest(&lab, 5);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i], .image_offset = 4096 * 3);
		GMEM_OPTS(gmem_transfer_opts, sync, .flags = flags[i] | GMEM_TRANSFER_SYNC,
			  .image_offset = 4096 * 3);
		struct gmem_transfer_result out = no_result(), in = no_result();

		OK(gmem_vm_save(lab.vm, fd, &sync, &out));
		memset(gmem_region_hva(region), 0x33, gmem_region_size(region));
		OK(gmem_vm_restore(lab.vm, fd, &opts, &in));
		check_memory(gmem_region_hva(region), gmem_region_size(region), 5);
		note("flags %llu: of %llu bytes %llu written and %llu read past the page cache",
		     (unsigned long long)flags[i], (unsigned long long)out.file_bytes,
		     (unsigned long long)out.direct_bytes, (unsigned long long)in.direct_bytes);
		if (flags[i])
			CHECK_EQ(out.direct_bytes + in.direct_bytes, 0);

		OK(gmem_vm_load(lab.vm, BASE, fd, 4096 * 3, 5000, NULL, &in));
		CHECK(memcmp(gmem_region_hva(region), "GMEMHEAD", 8) == 0);
		fill(gmem_region_hva(region), BLOCK * 2, 5);
		memset(gmem_region_hva(region), 0, BLOCK * 2);
		fill(gmem_region_hva(region), BLOCK * 2, 5);
	}
	close(fd);
	lab_free(&lab);
}

/* ---- pipes ---- */

struct mover {
	int from, to;
};

static void *move_all(void *data)
{
	const struct mover *mover = data;
	static __thread char buf[65536];
	ssize_t n;

	while ((n = read(mover->from, buf, sizeof(buf))) > 0)
		if (write(mover->to, buf, (size_t)n) != n)
			break;
	close(mover->to);
	return NULL;
}

TEST(a_pipe_carries_it_both_ways)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING };
	struct gmem_region *region;
	struct lab lab;

	region = new_guest(&lab, 6);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i]);
		int out[2], in[2], fd = new_file();
		struct mover mover;
		pthread_t thread;

		WORKS(pipe(out));
		mover = (struct mover){ out[0], dup(fd) };
		CHECK_EQ(pthread_create(&thread, NULL, move_all, &mover), 0);
		OK(gmem_vm_save(lab.vm, out[1], &opts, NULL));
		close(out[1]);
		pthread_join(thread, NULL);
		close(out[0]);

		memset(gmem_region_hva(region), 0x11, gmem_region_size(region));
		WORKS(lseek(fd, 0, SEEK_SET));
		WORKS(pipe(in));
		mover = (struct mover){ fd, in[1] };
		CHECK_EQ(pthread_create(&thread, NULL, move_all, &mover), 0);
		OK(gmem_vm_restore(lab.vm, in[0], &opts, NULL));
		pthread_join(thread, NULL);
		close(in[0]);
		close(fd);
		check_memory(gmem_region_hva(region), gmem_region_size(region), 6);
	}
	lab_free(&lab);
}

TEST(an_event_loop_drives_it_without_waiting_in_it)
{
	struct gmem_transfer *transfer;
	struct gmem_region *region;
	struct mover mover;
	pthread_t thread;
	struct lab lab;
	int out[2], ret, fd = new_file();

	region = new_guest(&lab, 7);
	WORKS(pipe(out));
	mover = (struct mover){ out[0], dup(fd) };
	CHECK_EQ(pthread_create(&thread, NULL, move_all, &mover), 0);
	OK(gmem_vm_save_begin(lab.vm, out[1], NULL, &transfer));
	while ((ret = gmem_transfer_step(transfer, 0)) > 0) {
		struct pollfd pollfd = { .fd = -1 };

		pollfd.fd = gmem_transfer_fd(transfer, &pollfd.events);
		if (ret == GMEM_TRANSFER_WAIT)
			CHECK_EQ(poll(&pollfd, 1, -1), 1);
	}
	CHECK_RESULT(ret, 0);
	OK(gmem_transfer_free(transfer));
	close(out[1]);
	pthread_join(thread, NULL);
	close(out[0]);
	OK(gmem_image_verify(fd, NULL, NULL));

	/* a transfer from an empty pipe can be freed */
	WORKS(pipe(out));
	OK(gmem_vm_restore_begin(lab.vm, out[0], NULL, &transfer));
	CHECK_EQ(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	OK(gmem_transfer_free(transfer));
	close(out[0]);
	close(out[1]);
	check_memory(gmem_region_hva(region), gmem_region_size(region), 7);
	close(fd);
	lab_free(&lab);
}

/* ---- what goes wrong ---- */

TEST(a_full_disk_is_no_image_until_there_is_room_again)
{
	char directory[] = "/tmp/gmem-full-XXXXXX", path[64];
	struct gmem_transfer *transfer;
	struct gmem_region *region;
	struct lab lab;
	int fd, ret;

	if (!mkdtemp(directory) || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", directory, "tmpfs", 0, "size=256k") < 0)
		skip("a small file system cannot be mounted here: %s", strerror(errno));
	snprintf(path, sizeof(path), "%s/image", directory);
	fd = (int)WORKS(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));

	region = new_guest(&lab, 8);
	OK(gmem_vm_save_begin(lab.vm, fd, NULL, &transfer));
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	CHECK_RESULT(ret, -ENOSPC);
	CHECK(gmem_image_verify(fd, NULL, NULL) < 0);
	CHECK(gmem_vm_restore(lab.vm, fd, NULL, NULL) < 0);
	fill(gmem_region_hva(region), gmem_region_size(region), 8);

	WORKS(mount("none", directory, NULL, MS_REMOUNT, "size=64m"));
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	CHECK_RESULT(ret, 0);
	OK(gmem_transfer_free(transfer));
	memset(gmem_region_hva(region), 0x22, gmem_region_size(region));
	OK(gmem_vm_restore(lab.vm, fd, NULL, NULL));
	check_memory(gmem_region_hva(region), gmem_region_size(region), 8);
	close(fd);
	lab_free(&lab);
	umount2(directory, MNT_DETACH);
	rmdir(directory);
}

/* The file's permissions would allow more, also past the page cache. */
TEST(an_fd_is_not_used_for_more_than_it_is_open_for)
{
	static const int modes[] = { O_RDONLY, O_WRONLY, O_PATH };
	/* on a disk, if there is one */
	const char *directory = access("/var/tmp", W_OK) ? "/tmp" : "/var/tmp";
	struct gmem_region *region;
	struct lab lab;

	region = new_guest(&lab, 8);
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		char path[64];
		int file, fd;

		snprintf(path, sizeof(path), "%s/gmem-access-XXXXXX", directory);
		file = (int)WORKS(mkstemp(path));
		OK(gmem_vm_save(lab.vm, file, NULL, NULL));
		posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
		fd = (int)WORKS(open(path, modes[i] | O_CLOEXEC));
		unlink(path);
		memset(gmem_region_hva(region), 0x22, gmem_region_size(region));
		CHECK_RESULT(gmem_vm_save(lab.vm, fd, NULL, NULL), modes[i] == O_WRONLY ? 0 : -EBADF);
		if (modes[i] != O_RDONLY) {
			CHECK_RESULT(gmem_image_verify(fd, NULL, NULL), -EBADF);
			CHECK_RESULT(gmem_vm_restore(lab.vm, fd, NULL, NULL), -EBADF);
			CHECK_RESULT(gmem_vm_load(lab.vm, BASE, fd, 0, 4096, NULL, NULL), -EBADF);
		}
		if (modes[i] != O_WRONLY) {
			OK(gmem_vm_restore(lab.vm, file, NULL, NULL));
			check_memory(gmem_region_hva(region), gmem_region_size(region), 8);
		}
		memset(gmem_region_hva(region), 0, gmem_region_size(region));
		fill(gmem_region_hva(region), gmem_region_size(region), 8);
		close(fd);
		close(file);
	}
	lab_free(&lab);
}

TEST(a_limit_of_files_is_an_error_and_no_signal)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_DIRECT, GMEM_TRANSFER_NO_RING };
	struct rlimit before, small;
	struct gmem_region *region;
	struct lab lab;

	WORKS(getrlimit(RLIMIT_FSIZE, &before));
	region = new_guest(&lab, 8);
	memset(gmem_region_hva(region), 1, gmem_region_size(region));
	fill(gmem_region_hva(region), gmem_region_size(region), 8);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i]);
		struct gmem_transfer *transfer;
		int ret, fd = new_file();

		small = before;
		small.rlim_cur = 100 * 4096;
		OK(gmem_vm_save_begin(lab.vm, fd, &opts, &transfer));
		WORKS(setrlimit(RLIMIT_FSIZE, &small));
		for (unsigned k = 0; k < 6; k++) {
			while ((ret = gmem_transfer_step(transfer, k % 2)) > 0)
				;
			CHECK_RESULT(ret, -EFBIG);
			CHECK(strstr(gmem_last_error(), "RLIMIT_FSIZE ends files at 0x64000"));
		}
		WORKS(setrlimit(RLIMIT_FSIZE, &before));
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		CHECK_RESULT(ret, 0);
		OK(gmem_transfer_free(transfer));
		OK(gmem_image_verify(fd, NULL, NULL));
		close(fd);
	}
	lab_free(&lab);
}

TEST(a_writer_that_is_killed_leaves_no_image)
{
	struct gmem_region *region;
	struct lab lab;
	int fd = new_file(), status;

	region = new_guest(&lab, 9);
	for (unsigned calls = 1; calls < 3; calls++) {
		unsigned left = calls;
		GMEM_OPTS(gmem_transfer_opts, opts, .progress = lab_die, .progress_data = &left);
		pid_t child;

		/* an older image is there already, a complete one */
		OK(gmem_vm_save(lab.vm, fd, NULL, NULL));
		OK(gmem_image_verify(fd, NULL, NULL));
		child = (pid_t)WORKS(fork());
		if (child == 0) {
			/* its own copy, with other contents */
			memset(gmem_region_hva(region), 0, gmem_region_size(region));
			fill(gmem_region_hva(region), gmem_region_size(region), 10);
			gmem_vm_save(lab.vm, fd, &opts, NULL);
			_exit(0);
		}
		WORKS(waitpid(child, &status, 0));
		if (WIFEXITED(status))
			break;		/* it was done before so many calls */
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		if (gmem_vm_restore(lab.vm, fd, NULL, NULL) == 0) {
			/* before the first byte, or after the last: nothing in between */
			unsigned char first[BLOCK];
			unsigned seed = 9;

			for (uint64_t block = 0; seed == 9 && block < 8; block++) {
				expected_block(9, block, first);
				if (memcmp((char *)gmem_region_hva(region) + block * BLOCK, first, BLOCK))
					seed = 10;
			}
			check_memory(gmem_region_hva(region), gmem_region_size(region), seed);
		}
		memset(gmem_region_hva(region), 0, gmem_region_size(region));
		fill(gmem_region_hva(region), gmem_region_size(region), 9);
	}
	close(fd);
	lab_free(&lab);
}

/* ---- several threads ---- */

#define BIG_PAGES ((uint64_t)(16 << 20) / page_size())

/* Dense, but for a page now and then, or as any memory is */
static int big_file(uint64_t size, bool is_dense)
{
	char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = new_file();

	CHECK(bytes != MAP_FAILED);
	if (is_dense)
		memset(bytes, 0x5a, size);
	else
		fill(bytes, size, 3);
	for (uint64_t at = size / 3; at < size; at += size / 3)
		memset(bytes + at / page_size() * page_size(), 0, page_size());
	CHECK(pwrite(fd, bytes, size, 0) == (ssize_t)size);
	munmap(bytes, size);
	return fd;
}

static void check_file(const void *memory, uint64_t size, int fd)
{
	char *bytes = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

	CHECK(bytes != MAP_FAILED);
	CHECK(memcmp(bytes, memory, size) == 0);
	munmap(bytes, size);
}

static void *lend(void *data)
{
	OK(gmem_transfer_work(data));
	return NULL;
}

TEST(workers_load_and_restore_what_one_does)
{
	OK(gmem_recovery_enable());
	for (size_t i = 0; i < 2 * ARRAY_SIZE(backings); i++) {
		struct gmem_transfer_result one = no_result(), many = no_result();
		struct gmem_region *region;
		int fd, image = new_file();
		struct lab lab;
		uint64_t size;

		if (!begin_with(&lab, backings[i / 2], &region))
			continue;
		lab_free(&lab);
		for (uint32_t workers = 1; workers <= 4; workers++) {
			GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers);

			lab_new(&lab, DEFAULT_VM);
			region = lab_add(&lab, backings[i / 2], BASE, BIG_PAGES, NULL);
			size = gmem_region_size(region);
			fd = big_file(size, i % 2);
			OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, &opts, &many));
			one = workers == 1 ? many : one;
			CHECK(many.data_bytes == one.data_bytes && many.zero_bytes == one.zero_bytes);
			check_file(gmem_region_hva(region), size, fd);

			OK(gmem_vm_save(lab.vm, image, &opts, NULL));
			memset(gmem_region_hva(region), 7, size);
			OK(gmem_image_verify(image, &opts, &many));
			OK(gmem_vm_restore(lab.vm, image, &opts, &many));
			CHECK(many.data_bytes == one.data_bytes);
			check_file(gmem_region_hva(region), size, fd);
			close(fd);
			lab_free(&lab);
		}
		close(image);
	}
	gmem_recovery_disable();
}

/* What a limit of the container says to a thread more */
static void forbid_threads(void)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_clone, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = ARRAY_SIZE(rules), .filter = rules };
	pthread_t thread;

	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		skip("this kernel has no seccomp filters");
	CHECK_EQ(pthread_create(&thread, NULL, lend, NULL), EAGAIN);
}

TEST(threads_that_are_refused_are_done_without)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 4);
	struct gmem_transfer_result one = no_result(), none = no_result();
	int fd, image = new_file(), other = new_file();
	struct gmem_region *region;
	struct lab lab;
	uint64_t size;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, BIG_PAGES, NULL);
	size = gmem_region_size(region);
	fd = big_file(size, false);
	OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, NULL, &one));
	OK(gmem_vm_save(lab.vm, image, NULL, NULL));
	forbid_threads();
	memset(gmem_region_hva(region), 7, size);
	OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, &opts, &none));
	CHECK(none.data_bytes == one.data_bytes && none.zero_bytes == one.zero_bytes);
	check_file(gmem_region_hva(region), size, fd);
	OK(gmem_vm_save(lab.vm, other, &opts, &none));
	CHECK(none.data_bytes == one.data_bytes);
	memset(gmem_region_hva(region), 7, size);
	OK(gmem_vm_restore(lab.vm, other, &opts, &none));
	CHECK(none.data_bytes == one.data_bytes);
	check_file(gmem_region_hva(region), size, fd);
	OK(gmem_image_verify(other, &opts, NULL));
	close(fd);
	close(image);
	close(other);
	lab_free(&lab);
}

/* ---- saves by several threads ---- */

static int stop_halfway(void *data, uint64_t done, uint64_t total)
{
	return !*(bool *)data && done >= total / 2;
}

/* Stopped in the middle, and gone on with, it has what a save at one go has. */
TEST(workers_save_what_one_saves)
{
	OK(gmem_recovery_enable());
	for (size_t i = 0; i < 2 * ARRAY_SIZE(backings); i++) {
		struct gmem_transfer_result one = no_result(), many = no_result();
		struct gmem_region *region;
		uint64_t size;
		struct lab lab;
		int fd;

		if (!begin_with(&lab, backings[i / 2], &region))
			continue;
		lab_free(&lab);
		lab_new(&lab, DEFAULT_VM);
		region = lab_add(&lab, backings[i / 2], BASE, 2 * BIG_PAGES, NULL);
		size = gmem_region_size(region);
		fd = big_file(size, i % 2);
		OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, NULL, NULL));
		for (uint32_t workers = 1; workers <= 4; workers += 3) {
			bool may_go_on = i / 2 % 2;
			GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers, .progress = stop_halfway,
				  .progress_data = &may_go_on);
			struct gmem_transfer *transfer;
			int image = new_file(), ret;

			OK(gmem_vm_save_begin(lab.vm, image, &opts, &transfer));
			while ((ret = gmem_transfer_step(transfer, 1)) > 0 || ret == -ECANCELED)
				may_go_on |= ret < 0;
			OK(ret);
			CHECK(may_go_on);
			OK(gmem_transfer_get_result(transfer, &many));
			OK(gmem_transfer_free(transfer));
			one = workers == 1 ? many : one;
			CHECK(many.data_bytes == one.data_bytes && many.zero_bytes == one.zero_bytes &&
			      many.file_bytes == one.file_bytes);
			memset(gmem_region_hva(region), 7, size);
			OK(gmem_vm_restore(lab.vm, image, NULL, NULL));
			check_file(gmem_region_hva(region), size, fd);
			close(image);
		}
		close(fd);
		lab_free(&lab);
	}
	gmem_recovery_disable();
}

/* Freed in the middle, with the threads at hand */
TEST(save_by_workers_may_be_given_up)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 4);
	struct gmem_transfer *transfer;
	struct gmem_region *region;
	int image = new_file();
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, BIG_PAGES, NULL);
	memset(gmem_region_hva(region), 7, gmem_region_size(region));
	for (int steps = 0; steps < 8; steps++) {
		OK(gmem_vm_save_begin(lab.vm, image, &opts, &transfer));
		for (int i = 0; i < steps; i++)
			CHECK(gmem_transfer_step(transfer, 1) >= 0);
		OK(gmem_transfer_free(transfer));
	}
	OK(gmem_vm_save(lab.vm, image, &opts, NULL));
	OK(gmem_image_verify(image, NULL, NULL));
	close(image);
	lab_free(&lab);
}

static int cut_file(void *data, uint64_t done, uint64_t total)
{
	const struct lab_memory *memory = data;

	(void)done;
	(void)total;
	WORKS(ftruncate(memory->fd, (off_t)(memory->size / 2)));
	return 0;
}

/* Fails once the file is cut after the first step; is right once it is whole again. */
static void transfer_to_the_cut(int err, struct gmem_transfer *transfer, const struct lab_memory *memory)
{
	int ret;

	OK(err);
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	CHECK_EQ(ret, -EFAULT);
	WORKS(ftruncate(memory->fd, (off_t)memory->size));
	OK(gmem_transfer_free(transfer));
}

/* The guest's memory loses its file while all threads work on it: SIGBUS. */
TEST(file_cut_behind_the_guest_stops_all_workers)
{
	OK(gmem_recovery_enable());
	for (uint32_t workers = 1; workers <= 4; workers += 3) {
		struct lab_memory memory = { .size = 5 * BIG_PAGES * page_size(), .fd = new_file() };
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers, .progress = cut_file,
			  .progress_data = &memory);
		struct gmem_transfer *transfer = NULL;
		int image = new_file(), fd = big_file(memory.size, true), err;
		struct lab lab;

		WORKS(ftruncate(memory.fd, (off_t)memory.size));
		memory.hva = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
		CHECK(memory.hva != MAP_FAILED);
		lab_new(&lab, DEFAULT_VM);
		lab_add_memory(&lab, BASE, &memory);
		err = gmem_vm_load_begin(lab.vm, BASE, fd, 0, 0, &opts, &transfer);
		transfer_to_the_cut(err, transfer, &memory);
		OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, NULL, NULL));
		check_file(memory.hva, memory.size, fd);
		OK(gmem_vm_save(lab.vm, image, NULL, NULL));
		err = gmem_vm_restore_begin(lab.vm, image, &opts, &transfer);
		transfer_to_the_cut(err, transfer, &memory);
		OK(gmem_vm_restore(lab.vm, image, NULL, NULL));
		check_file(memory.hva, memory.size, fd);
		err = gmem_vm_save_begin(lab.vm, image, &opts, &transfer);
		transfer_to_the_cut(err, transfer, &memory);
		close(image);
		close(fd);
		lab_free(&lab);
		lab_unmap_memory(&memory);
	}
	gmem_recovery_disable();
}

/* A child steps and frees @transfer, then this process does it. */
static void fork_in_the_middle(struct gmem_transfer *transfer)
{
	pthread_t thread;
	int status, ret;
	pid_t child;

	WORKS(-pthread_create(&thread, NULL, lend, transfer));
	CHECK(gmem_transfer_step(transfer, 1) >= 0);
	child = (pid_t)WORKS(fork());
	if (child == 0) {
		OK(gmem_transfer_work(transfer));
		gmem_transfer_step(transfer, 1);
		OK(gmem_transfer_free(transfer));
		_exit(0);
	}
	WORKS(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	do {
		ret = gmem_transfer_step(transfer, 1);
	} while (ret > 0);
	CHECK(ret == 0);
	WORKS(-pthread_join(thread, NULL));
	OK(gmem_transfer_free(transfer));
}

TEST(child_ends_a_transfer_whose_threads_it_does_not_have)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 3);
	struct gmem_transfer *transfer;
	struct gmem_region *region;
	int fd, image = new_file();
	struct lab lab;
	uint64_t size;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 5 * BIG_PAGES, NULL);
	size = gmem_region_size(region);
	fd = big_file(size, false);
	OK(gmem_vm_load_begin(lab.vm, BASE, fd, 0, 0, &opts, &transfer));
	fork_in_the_middle(transfer);
	check_file(gmem_region_hva(region), size, fd);
	OK(gmem_vm_save_begin(lab.vm, image, &opts, &transfer));
	fork_in_the_middle(transfer);
	OK(gmem_image_verify(image, NULL, NULL));
	memset(gmem_region_hva(region), 7, size);
	OK(gmem_vm_restore_begin(lab.vm, image, &opts, &transfer));
	fork_in_the_middle(transfer);
	check_file(gmem_region_hva(region), size, fd);
	close(image);
	close(fd);
	lab_free(&lab);
}

/* A page in the middle that cannot be reached, with and without recovery */
TEST(page_that_cannot_be_reached_stops_all_workers)
{
	for (uint32_t i = 0; i < 8; i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = i % 4 + 1);
		struct gmem_transfer_result result = no_result();
		struct gmem_region *region;
		struct lab lab;
		char *page;
		int fd;

		if (i >= 4)
			OK(gmem_recovery_enable());
		if (!begin_with(&lab, GMEM_BACKING_SHARED, &region))
			continue;
		lab_free(&lab);
		lab_new(&lab, DEFAULT_VM);
		region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, BIG_PAGES, NULL);
		fd = big_file(gmem_region_size(region), true);
		page = (char *)gmem_region_hva(region) + 7 * (gmem_region_size(region) / 16);
		WORKS(mprotect(page, page_size(), PROT_NONE));
		REFUSED(gmem_vm_load(lab.vm, BASE, fd, 0, 0, &opts, &result), -EFAULT);
		CHECK(strstr(gmem_last_error(), "cannot be written"));
		CHECK(result.data_bytes + result.zero_bytes <= 7 * (gmem_region_size(region) / 16));
		WORKS(mprotect(page, page_size(), PROT_READ | PROT_WRITE));
		OK(gmem_vm_load(lab.vm, BASE, fd, 0, 0, &opts, &result));
		check_file(gmem_region_hva(region), gmem_region_size(region), fd);
		close(fd);
		lab_free(&lab);
		if (i >= 4)
			gmem_recovery_disable();
	}
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
