/* SPDX-License-Identifier: MIT */
/*
 * Host memory whose pages are not there: owed by userfaultfd, in a file, in nobody's. What is
 * saved, restored and discarded is right, and sparse memory stays sparse.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define PAGES 16
#define OWED 0xab		/* what the handler of userfaultfd has in each byte */

/* ---- memory of the caller's ---- */

static struct lab_memory map_memory(uint64_t size, int flags, int fd)
{
	struct lab_memory memory = { .size = size, .fd = fd };

	memory.hva = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(memory.hva != MAP_FAILED);
	return memory;
}

static struct lab_memory map_memfd(uint64_t size, int flags)
{
	int fd = (int)WORKS(memfd_create("guest", MFD_CLOEXEC));

	WORKS(ftruncate(fd, (off_t)size));
	return map_memory(size, flags, fd);
}

static uint64_t file_bytes(int fd)
{
	struct stat st;

	WORKS(fstat(fd, &st));
	return (uint64_t)st.st_blocks * 512;
}

static void check_bytes(const char *at, uint64_t size, int wanted)
{
	for (uint64_t i = 0; i < size; i++)
		if ((unsigned char)at[i] != wanted)
			FAIL("byte 0x%llx is %02x, not %02x", (unsigned long long)i, (unsigned char)at[i], wanted);
}

static int save(struct lab *lab, struct gmem_transfer_result *result)
{
	int fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));

	*result = (struct gmem_transfer_result){ .size = sizeof(*result) };
	OK(gmem_vm_save(lab->vm, fd, NULL, result));
	return fd;
}

/* What an image leaves out if it is zero, whatever the host's page */
#define IMAGE_PAGE 4096

/* An image of one region at BASE that is zero but for its first byte */
static int image_of_zeros(uint64_t size)
{
	struct gmem_transfer_result result;
	struct gmem_region *region;
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, size / page_size(), NULL);
	*(char *)gmem_region_hva(region) = 1;
	fd = save(&lab, &result);
	CHECK_EQ(result.data_bytes, IMAGE_PAGE);
	lab_free(&lab);
	return fd;
}

/* ---- userfaultfd ---- */

struct handler {
	pthread_t thread;
	int fd;
	int stop[2];
	unsigned int served;
	char *page;		/* large enough for any memory's */
	uint64_t page_size;
};

#define LARGEST (2 * MIB)

static void *serve(void *data)
{
	struct handler *handler = data;
	struct uffd_msg message;

	while (read(handler->fd, &message, sizeof(message)) == sizeof(message)) {
		struct uffdio_copy copy = {
			.dst = message.arg.pagefault.address & ~(handler->page_size - 1),
			.src = (uintptr_t)handler->page,
			.len = handler->page_size,
		};

		if (message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		__atomic_fetch_add(&handler->served, 1, __ATOMIC_RELAXED);
		ioctl(handler->fd, UFFDIO_COPY, &copy);
	}
	return NULL;
}

static void begin_handler(struct handler *handler, char *hva, uint64_t size, uint64_t page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (uintptr_t)hva, size },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };

	*handler = (struct handler){ .fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), .page_size = page };
	if (handler->fd < 0)
		skip("userfaultfd: %s", result_text(-errno));
	WORKS(ioctl(handler->fd, UFFDIO_API, &api));
	if (SYS(ioctl(handler->fd, UFFDIO_REGISTER, &range)))
		skip("userfaultfd does not take this memory here");
	handler->page = mmap(NULL, LARGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(handler->page, OWED, LARGEST);
	CHECK_EQ(pthread_create(&handler->thread, NULL, serve, handler), 0);
}

/* The thread is ended by the end of the process; what it serves is let go here. */
static void end_handler(struct handler *handler, char *hva, uint64_t size)
{
	struct uffdio_range range = { (uintptr_t)hva, size };

	WORKS(ioctl(handler->fd, UFFDIO_UNREGISTER, &range));
	pthread_cancel(handler->thread);
	pthread_join(handler->thread, NULL);
	WORKS(close(handler->fd));
	WORKS(munmap(handler->page, LARGEST));
}

/* The kinds of memory that userfaultfd cares for; NULL: no more */
static bool owed_memory(unsigned int which, struct lab *lab, struct lab_memory *memory, char **ret_hva)
{
	uint64_t size = PAGES * page_size();

	*memory = (struct lab_memory){ .fd = -1 };
	in_case("memory %u", which);
	if (which > 2)
		return false;
	lab_new(lab, DEFAULT_VM);
	if (which == 0) {
		*ret_hva = gmem_region_hva(lab_add(lab, GMEM_BACKING_HOST, BASE, PAGES, NULL));
		return true;
	}
	*memory = which == 1 ? map_memory(size, MAP_PRIVATE | MAP_ANONYMOUS, -1) : map_memfd(size, MAP_SHARED);
	*ret_hva = gmem_region_hva(lab_add_memory(lab, BASE, memory));
	return true;
}

TEST(pages_that_userfaultfd_owes_are_saved_with_what_they_hold)
{
	struct gmem_transfer_result result;
	struct handler handler;
	struct lab_memory memory;
	struct lab lab, copy;
	char *hva;
	int fd;

	for (unsigned int which = 0; owed_memory(which, &lab, &memory, &hva); which++) {
		begin_handler(&handler, hva, PAGES * page_size(), page_size());
		CHECK_EQ((unsigned char)hva[5 * page_size()], OWED);
		fd = save(&lab, &result);
		CHECK_EQ(result.data_bytes, PAGES * page_size());
		CHECK_EQ(handler.served, PAGES);
		end_handler(&handler, hva, PAGES * page_size());
		lab_free(&lab);
		if (memory.hva)
			lab_unmap_memory(&memory);

		lab_new(&copy, DEFAULT_VM);
		hva = gmem_region_hva(lab_add(&copy, GMEM_BACKING_HOST, BASE, PAGES, NULL));
		OK(gmem_vm_restore(copy.vm, fd, NULL, NULL));
		check_bytes(hva, PAGES * page_size(), OWED);
		lab_free(&copy);
		close(fd);
	}
}

TEST(zeros_are_restored_over_what_userfaultfd_owes)
{
	struct handler handler;
	struct lab_memory memory;
	struct lab lab;
	char *hva;
	int fd = image_of_zeros(PAGES * page_size());

	for (unsigned int which = 0; owed_memory(which, &lab, &memory, &hva); which++) {
		begin_handler(&handler, hva, PAGES * page_size(), page_size());
		OK(gmem_vm_restore(lab.vm, fd, NULL, NULL));
		CHECK_EQ(hva[0], 1);
		check_bytes(hva + 1, PAGES * page_size() - 1, 0);
		end_handler(&handler, hva, PAGES * page_size());
		lab_free(&lab);
		if (memory.hva)
			lab_unmap_memory(&memory);
	}
	close(fd);
}

/* A VMM that answers userfaultfd in the thread that discards would wait for ever. */
TEST(discard_of_userfaultfds_memory_is_refused_at_once_unless_it_is_allowed)
{
	GMEM_OPTS(gmem_discard_opts, opts, .flags = GMEM_DISCARD_NOT_ZERO);
	struct gmem_footprint footprint;
	struct handler handler;
	struct lab_memory memory;
	struct lab lab;
	char *hva;

	for (unsigned int which = 0; owed_memory(which, &lab, &memory, &hva); which++) {
		uint64_t page = page_size(), size = PAGES * page;

		begin_handler(&handler, hva, size, page);
		memset(hva, 1, size);
		CHECK_EQ(handler.served, PAGES);
		REFUSED(gmem_vm_discard(lab.vm, BASE + page, size - page, NULL, &footprint), -EOPNOTSUPP);
		CHECK(strstr(gmem_last_error(), "userfaultfd"));
		CHECK(strstr(gmem_last_error(), "GMEM_DISCARD_NOT_ZERO"));
		CHECK_EQ(footprint.done, 0);
		CHECK_EQ(handler.served, PAGES);
		check_bytes(hva, page, 1);
		check_bytes(hva + 2 * page, size - 2 * page, 1);

		OK(gmem_vm_discard(lab.vm, BASE + page, size - page, &opts, &footprint));
		CHECK_EQ(footprint.done, size - page);
		CHECK_EQ(footprint.after, 0);
		check_bytes(hva + page, page, OWED);

		end_handler(&handler, hva, size);
		OK(gmem_vm_discard(lab.vm, BASE + page, size - page, NULL, &footprint));
		check_bytes(hva + page, size - page, 0);
		lab_free(&lab);
		if (memory.hva)
			lab_unmap_memory(&memory);
	}
}

/* ---- files ---- */

static struct lab_memory map_image_file(int flags)
{
	struct lab_memory memory = map_memfd(PAGES * page_size(), MAP_SHARED);
	int fd = memory.fd;

	memset(memory.hva, 'F', memory.size);
	WORKS(munmap(memory.hva, memory.size));
	return map_memory(memory.size, flags, fd);
}

TEST(private_mapping_of_a_file_is_saved_and_cleared_as_it_reads)
{
	struct lab_memory memory = map_image_file(MAP_PRIVATE);
	struct gmem_transfer_result result;
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	lab_add_memory(&lab, BASE, &memory);
	memory.hva[0] = 1;
	fd = save(&lab, &result);
	CHECK_EQ(result.data_bytes, memory.size);
	close(fd);

	fd = image_of_zeros(memory.size);
	OK(gmem_vm_restore(lab.vm, fd, NULL, NULL));
	CHECK_EQ(memory.hva[0], 1);
	check_bytes(memory.hva + 1, memory.size - 1, 0);
	close(fd);
	lab_free(&lab);
	lab_unmap_memory(&memory);
}

TEST(discard_of_a_private_mapping_of_a_file_is_refused_unless_it_is_allowed)
{
	GMEM_OPTS(gmem_discard_opts, opts, .flags = GMEM_DISCARD_NOT_ZERO);
	struct lab_memory memory = map_image_file(MAP_PRIVATE);
	struct gmem_footprint footprint;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	lab_add_memory(&lab, BASE, &memory);
	memset(memory.hva, 1, memory.size);
	REFUSED(gmem_vm_discard(lab.vm, BASE, page_size(), NULL, NULL), -EOPNOTSUPP);
	REFUSED(gmem_vm_discard(lab.vm, BASE, page_size(), NULL, NULL), -EOPNOTSUPP);
	REFUSED(gmem_vm_discard(lab.vm, BASE, memory.size, NULL, &footprint), -EOPNOTSUPP);
	CHECK(strstr(gmem_last_error(), "show the file again"));
	CHECK_EQ(footprint.done, 0);
	check_bytes(memory.hva, memory.size, 1);

	OK(gmem_vm_discard(lab.vm, BASE, memory.size, &opts, &footprint));
	CHECK_EQ(footprint.before, memory.size);
	CHECK_EQ(footprint.after, 0);
	check_bytes(memory.hva, memory.size, 'F');
	lab_free(&lab);
	lab_unmap_memory(&memory);
}

TEST(file_that_is_mapped_over_a_region_is_seen)
{
	struct lab_memory over = map_image_file(MAP_PRIVATE);
	struct gmem_transfer_result result;
	struct lab lab;
	char *hva;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	hva = gmem_region_hva(lab_add(&lab, GMEM_BACKING_HOST, BASE, PAGES, NULL));
	CHECK(mmap(hva + 4 * page_size(), 4 * page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
		   over.fd, 0) != MAP_FAILED);
	fd = save(&lab, &result);
	CHECK_EQ(result.data_bytes, 4 * page_size());
	REFUSED(gmem_vm_discard(lab.vm, BASE, PAGES * page_size(), NULL, NULL), -EOPNOTSUPP);
	check_bytes(hva + 4 * page_size(), 4 * page_size(), 'F');
	close(fd);
	lab_free(&lab);
	lab_unmap_memory(&over);
}

TEST(memory_past_the_end_of_its_file_is_not_taken_for_zeros)
{
	struct lab_memory memory = map_memfd(PAGES * page_size(), MAP_SHARED);
	struct lab lab;
	int fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));

	lab_new(&lab, DEFAULT_VM);
	lab_add_memory(&lab, BASE, &memory);
	WORKS(ftruncate(memory.fd, (off_t)(8 * page_size())));
	REFUSED(gmem_vm_save(lab.vm, fd, NULL, NULL), -EFAULT);
	close(fd);
	lab_free(&lab);
	lab_unmap_memory(&memory);
}

/* ---- sparse memory ---- */

#define SPARSE (64 * MIB)

/* Saved with one page, restored as it is, restored anew, and loaded from a file of zeros */
static void check_sparse(struct lab_memory *memory, uint64_t (*used)(const struct lab_memory *memory),
			 uint64_t wanted)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct lab lab;
	int fd, zeros = (int)WORKS(memfd_create("zeros", MFD_CLOEXEC));

	WORKS(ftruncate(zeros, (off_t)SPARSE));
	lab_new(&lab, DEFAULT_VM);
	lab_add_memory(&lab, BASE, memory);
	memory->hva[0] = 1;
	fd = save(&lab, &result);
	CHECK_EQ(result.data_bytes, IMAGE_PAGE);
	CHECK_EQ(result.zero_bytes, SPARSE - IMAGE_PAGE);
	CHECK_EQ(used(memory), wanted);
	OK(gmem_vm_restore(lab.vm, fd, NULL, NULL));
	CHECK_EQ(used(memory), wanted);
	OK(gmem_vm_load(lab.vm, BASE + page_size(), zeros, 0, SPARSE - page_size(), NULL, NULL));
	CHECK_EQ(used(memory), wanted);
	CHECK_EQ(memory->hva[0], 1);
	close(fd);
	close(zeros);
	lab_free(&lab);
}

static uint64_t used_of_file(const struct lab_memory *memory)
{
	return file_bytes(memory->fd);
}

static uint64_t used_of_pages(const struct lab_memory *memory)
{
	unsigned char *marks = malloc(memory->size / page_size());
	uint64_t sum = 0;

	WORKS(mincore(memory->hva, memory->size, marks));
	for (uint64_t i = 0; i < memory->size / page_size(); i++)
		sum += marks[i] & 1 ? page_size() : 0;
	free(marks);
	return sum;
}

TEST(sparse_memfd_stays_sparse)
{
	struct lab_memory memory = map_memfd(SPARSE, MAP_SHARED);

	check_sparse(&memory, used_of_file, page_size());
	lab_unmap_memory(&memory);
}

TEST(hole_of_a_memfd_that_is_mapped_privately_stays_one)
{
	struct lab_memory memory = map_memfd(SPARSE, MAP_PRIVATE);

	WORKS(madvise(memory.hva, memory.size, MADV_NOHUGEPAGE));
	/* The kernel copies a page of the file when it is written, and makes it for that. */
	check_sparse(&memory, used_of_file, page_size());
	lab_unmap_memory(&memory);
}

TEST(sparse_file_of_tmpfs_stays_sparse)
{
	struct lab_memory memory;
	int fd = (int)SYS(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));

	if (fd < 0)
		skip("no tmpfs at /dev/shm");
	WORKS(ftruncate(fd, (off_t)SPARSE));
	memory = map_memory(SPARSE, MAP_SHARED, fd);
	check_sparse(&memory, used_of_file, page_size());
	lab_unmap_memory(&memory);
}

TEST(sparse_shared_anonymous_memory_stays_sparse)
{
	struct lab_memory memory;

	if (geteuid() != 0)
		skip("without privileges it takes a machine without swap");
	memory = map_memory(SPARSE, MAP_SHARED | MAP_ANONYMOUS, -1);
	check_sparse(&memory, used_of_pages, page_size());
	lab_unmap_memory(&memory);
}

TEST(sparse_anonymous_memory_stays_sparse_down_to_its_page_tables)
{
	struct lab_memory memory = map_memory(SPARSE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	uint64_t before;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("a sanitizer's shadow of the memory has page tables, too");
#endif
	WORKS(madvise(memory.hva, memory.size, MADV_NOHUGEPAGE));
	before = lab_read_number("/proc/self/status", "VmPTE:");
	CHECK(before);
	check_sparse(&memory, used_of_pages, page_size());
	CHECK(lab_read_number("/proc/self/status", "VmPTE:") - before <= 64);
	lab_unmap_memory(&memory);
}

/* ---- what a discard frees ---- */

TEST(locked_shared_memory_is_freed_through_its_file)
{
	struct lab_memory memory = map_memfd(PAGES * page_size(), MAP_SHARED);
	struct gmem_footprint footprint;
	struct lab lab;

	if (SYS(syscall(SYS_mlock, memory.hva, memory.size)))
		skip("no memory may be locked here");
	lab_new(&lab, DEFAULT_VM);
	lab_add_memory(&lab, BASE, &memory);
	memset(memory.hva, 1, memory.size);
	OK(gmem_vm_discard(lab.vm, BASE + page_size(), memory.size - page_size(), NULL, &footprint));
	CHECK_EQ(footprint.done, memory.size - page_size());
	CHECK_EQ(footprint.after, 0);
	CHECK_EQ(file_bytes(memory.fd), page_size());
	check_bytes(memory.hva + page_size(), memory.size - page_size(), 0);
	lab_free(&lab);
	lab_unmap_memory(&memory);
}

TEST(memory_of_several_mappings_is_freed_by_what_each_is)
{
	struct lab_memory memory = map_memory(PAGES * page_size(), MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct lab_memory over = map_memfd(4 * page_size(), MAP_SHARED);
	struct gmem_footprint footprint;
	struct lab lab;

	CHECK(mmap(memory.hva + 4 * page_size(), 4 * page_size(), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, over.fd, 0) != MAP_FAILED);
	lab_new(&lab, DEFAULT_VM);
	lab_add_memory(&lab, BASE, &memory);
	memset(memory.hva, 1, memory.size);
	OK(gmem_vm_discard(lab.vm, BASE, memory.size, NULL, &footprint));
	CHECK_EQ(footprint.done, memory.size);
	CHECK_EQ(footprint.after, 0);
	CHECK_EQ(file_bytes(over.fd), 0);
	lab_free(&lab);
	lab_unmap_memory(&over);
	lab_unmap_memory(&memory);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
