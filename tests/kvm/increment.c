/* SPDX-License-Identifier: MIT */
/*
 * Incremental images on a real kernel: disks, pipes and sockets between processes, rings, savers
 * that die and disks that are full in the middle. What comes back is compared bit for bit.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE	((uint64_t)256 << 20)
#define PAGES	1500
#define LENGTH	20

static const uint32_t backings[] = { GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED, GMEM_BACKING_HOST };

/* A guest whose memory is written through a view, and what it should have */
struct world {
	struct lab lab;
	struct gmem_region *region;
	struct gmem_view *view;
	struct gmem_dirty *dirty;
	char *model;
	uint64_t size;
	unsigned seed;
};

static unsigned pick(struct world *w, unsigned below)
{
	w->seed = w->seed * 1103515245u + 12345u;
	return (w->seed >> 8) % below;
}

static bool begin(struct world *w, uint32_t backing)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW | GMEM_DIRTY_VCPUS_STOPPED);

	in_case("backing %s", gmem_backing_name(backing));
	if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
		return false;
	*w = (struct world){ .seed = backing };
	lab_new(&w->lab, DEFAULT_VM);
	w->region = lab_add(&w->lab, backing, BASE, PAGES, NULL);
	w->size = gmem_region_size(w->region);
	w->model = calloc(1, w->size);
	OK(gmem_view_new(w->lab.vm, &w->view));
	OK(gmem_dirty_new(w->lab.vm, &opts, &w->dirty));
	return true;
}

static void end(struct world *w)
{
	gmem_view_free(w->view);
	gmem_dirty_free(w->dirty);
	lab_free(&w->lab);
	free(w->model);
}

/* Write some bytes, or make some pages zero, in some places. */
static void scribble(struct world *w, unsigned places)
{
	for (unsigned i = 0; i < places; i++) {
		uint64_t at = (uint64_t)pick(w, (unsigned)(w->size / 16)) * 16;
		uint64_t size = 1 + pick(w, pick(w, 4) ? 300 : 60000);

		size = size < w->size - at ? size : w->size - at;
		memset(w->model + at, pick(w, 3) ? (int)pick(w, 255) + 1 : 0, size);
		OK(gmem_view_write(w->view, BASE + at, w->model + at, size, NULL));
	}
}

static void check_memory(struct gmem_region *region, const struct world *w)
{
	const char *hva = gmem_region_hva(region);

	for (uint64_t at = 0; at < w->size; at += w->lab.page)
		if (memcmp(hva + at, w->model + at, w->lab.page) != 0)
			FAIL("the page at 0x%llx is not what it was", (unsigned long long)at);
}

static void save(struct world *w, int fd, uint64_t flags, uint64_t offset, uint64_t *ret_bytes)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags, .image_offset = offset, .dirty = w->dirty,
		  .workers = pick(w, 4));
	struct gmem_transfer_result result = { .size = sizeof(result) };

	OK(gmem_vm_save(w->lab.vm, fd, &opts, &result));
	if (ret_bytes)
		*ret_bytes = result.file_bytes;
}

TEST(chain_on_a_disk_comes_back_in_another_vm)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING, GMEM_TRANSFER_NO_DIRECT, GMEM_TRANSFER_VERIFY };
	int files[LENGTH];

	for (size_t b = 0; b < ARRAY_SIZE(backings); b++) {
		struct world w;

		if (!begin(&w, backings[b]))
			continue;
		scribble(&w, 100);
		for (unsigned i = 0; i < LENGTH; i++) {
			files[i] = lab_new_file();
			save(&w, files[i], i % 2 ? GMEM_TRANSFER_SYNC : flags[i % 3], 0, NULL);
			/* Not from the page cache */
			posix_fadvise(files[i], 0, 0, POSIX_FADV_DONTNEED);
			if (i < LENGTH - 1)
				scribble(&w, pick(&w, 20));
		}
		for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i], .workers = (uint32_t)i,
				  .parents = files, .parent_count = LENGTH - 1);
			struct gmem_region *region;
			struct lab target;

			lab_new(&target, DEFAULT_VM);
			region = lab_add(&target, GMEM_BACKING_HOST, BASE, PAGES, NULL);
			memset(gmem_region_hva(region), 7, w.size);
			OK(gmem_vm_restore(target.vm, files[LENGTH - 1], &opts, NULL));
			check_memory(region, &w);
			lab_free(&target);
		}
		for (unsigned i = 0; i < LENGTH; i++)
			close(files[i]);
		end(&w);
	}
}

/* The process at the other end restores what comes, and compares it with what it finds in @shared. */
static void receive(int fd, uint64_t flags, uint64_t size, const char *shared)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags);
	struct gmem_region *region;
	struct lab target;
	char after[6];

	lab_new(&target, DEFAULT_VM);
	region = lab_add(&target, GMEM_BACKING_HOST, BASE, PAGES, NULL);
	OK(gmem_vm_restore(target.vm, fd, &opts, NULL));
	CHECK_EQ(read(fd, after, 6), 6);
	CHECK_STR(after, "after");
	CHECK_EQ(memcmp(gmem_region_hva(region), shared, size), 0);
	lab_free(&target);
	_exit(0);
}

TEST(rounds_go_to_another_process)
{
	for (unsigned way = 0; way < 4; way++) {
		uint64_t flags = way & 1 ? GMEM_TRANSFER_NO_RING : 0;
		int ends[2], status;
		struct world w;
		char *shared;
		pid_t child;

		WORKS(way & 2 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
		shared = mmap(NULL, PAGES * page_size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		child = (pid_t)WORKS(fork());
		if (child == 0) {
			close(ends[1]);
			receive(ends[0], flags, PAGES * page_size(), shared);
		}
		close(ends[0]);
		CHECK(begin(&w, GMEM_BACKING_HOST));
		scribble(&w, 100);
		for (unsigned i = 0; i < LENGTH; i++) {
			bool is_last = i == LENGTH - 1;

			if (is_last)
				memcpy(shared, w.model, w.size);
			save(&w, ends[1], flags | (is_last ? 0 : GMEM_TRANSFER_FOLLOWED), 0, NULL);
			if (i < LENGTH - 2)
				scribble(&w, pick(&w, 30));
		}
		CHECK_EQ(write(ends[1], "after", 6), 6);
		close(ends[1]);
		WORKS(waitpid(child, &status, 0));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		munmap(shared, w.size);
		end(&w);
	}
}

/* A process with a guest saves twice, and is killed in the second save after so many steps. */
static void save_and_die(int base, int child, unsigned steps, char *shared)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .progress = lab_die, .progress_data = &steps);
	struct world w;

	CHECK(begin(&w, GMEM_BACKING_HOST));
	scribble(&w, 100);
	save(&w, base, 0, 0, NULL);
	memcpy(shared, w.model, w.size);
	scribble(&w, 400);
	opts.dirty = w.dirty;
	OK(gmem_vm_save(w.lab.vm, child, &opts, NULL));
	_exit(0);
}

TEST(saver_that_is_killed_leaves_the_parent_as_it_was)
{
	uint64_t size = PAGES * page_size();
	bool was_killed = true;
	unsigned broken = 0;

	for (unsigned steps = 1; was_killed && steps < 50; steps++) {
		int files[2] = { lab_new_file(), lab_new_file() }, status;
		GMEM_OPTS(gmem_transfer_opts, opts, .parents = files, .parent_count = 1);
		struct gmem_region *region;
		struct lab target;
		pid_t child;
		char *shared;

		shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		child = (pid_t)WORKS(fork());
		if (child == 0)
			save_and_die(files[0], files[1], steps, shared);
		WORKS(waitpid(child, &status, 0));
		was_killed = !WIFEXITED(status);
		CHECK(was_killed || WEXITSTATUS(status) == 0);

		lab_new(&target, DEFAULT_VM);
		region = lab_add(&target, GMEM_BACKING_HOST, BASE, PAGES, NULL);
		if (was_killed) {
			memset(gmem_region_hva(region), 3, size);
			opts.flags = GMEM_TRANSFER_VERIFY;
			/* Killed behind its end, it leaves an image. */
			if (gmem_vm_restore(target.vm, files[1], &opts, NULL) < 0) {
				CHECK_EQ(*(char *)gmem_region_hva(region), 3);
				broken++;
			}
			OK(gmem_vm_restore(target.vm, files[0], NULL, NULL));
			CHECK_EQ(memcmp(gmem_region_hva(region), shared, size), 0);
		} else {
			OK(gmem_vm_restore(target.vm, files[1], &opts, NULL));
		}
		lab_free(&target);
		munmap(shared, size);
		close(files[0]);
		close(files[1]);
	}
	CHECK(!was_killed && broken > 1);
}

/* A limit of the size of files stands for a disk that is full, and later is not. */
TEST(save_goes_on_when_there_is_room_again)
{
	int files[2] = { lab_new_file(), lab_new_file() };
	GMEM_OPTS(gmem_transfer_opts, opts, .parents = files, .parent_count = 1);
	struct rlimit before, small;
	struct gmem_transfer *transfer;
	struct world w;
	int ret;

	CHECK(begin(&w, GMEM_BACKING_HOST));
	scribble(&w, 100);
	save(&w, files[0], 0, 0, NULL);
	scribble(&w, 300);
	{
		GMEM_OPTS(gmem_transfer_opts, saving, .dirty = w.dirty);

		OK(gmem_vm_save_begin(w.lab.vm, files[1], &saving, &transfer));
	}
	WORKS(getrlimit(RLIMIT_FSIZE, &before));
	small = before;
	small.rlim_cur = 1 << 20;
	WORKS(setrlimit(RLIMIT_FSIZE, &small));
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	CHECK_RESULT(ret, -EFBIG);
	WORKS(setrlimit(RLIMIT_FSIZE, &before));
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	CHECK_RESULT(ret, 0);
	OK(gmem_transfer_free(transfer));
	memset(gmem_region_hva(w.region), 9, w.size);
	OK(gmem_vm_restore(w.lab.vm, files[1], &opts, NULL));
	check_memory(w.region, &w);
	close(files[0]);
	close(files[1]);
	end(&w);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
