/* SPDX-License-Identifier: MIT */
/* The library in a jail without paths, after fork(), and after exec() */
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define OTHER (GIB)
#define ELSEWHERE (3 * GIB + 512 * MIB)
#define PAGES 4

static void write_file(const char *path, const char *text)
{
	int fd = (int)WORKS(open(path, O_WRONLY | O_CLOEXEC));

	CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

/* root of a user namespace of its own, with an empty file system; for good */
static void enter_jail(void)
{
	unsigned int uid = getuid();
	char map[32];

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		skip("no user namespaces here: %s", strerror(errno));
	write_file("/proc/self/setgroups", "deny");
	snprintf(map, sizeof(map), "0 %u 1", uid);
	write_file("/proc/self/uid_map", map);

	WORKS(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	WORKS(mount("jail", "/proc", "tmpfs", 0, NULL));
	WORKS(chroot("/proc"));
	WORKS(chdir("/"));
	CHECK_RESULT(SYS(open("/dev/kvm", O_RDWR | O_CLOEXEC)), -ENOENT);
	CHECK_RESULT(SYS(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), -ENOENT);
}

/* The harness looks at /proc after a test, which is out of reach in a jail. */
__attribute__((noreturn)) static void leave(void)
{
	fflush(stdout);
	_exit(EXIT_SUCCESS);
}

static struct gmem_region *add(struct gmem_vm *vm, uint32_t backing, uint64_t gpa)
{
	GMEM_OPTS(gmem_request, request, .backings = { backing });
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_region *region;
	struct gmem_plan *plan;

	OK(gmem_plan_new(gmem_vm_caps(vm), &request, &plan));
	opts.plan = plan;
	OK(gmem_region_add(vm, gpa, PAGES * page_size(), &opts, &region));
	gmem_plan_free(plan);
	return region;
}

static void use(struct gmem_vm *vm, uint64_t gpa)
{
	struct gmem_view *view;
	uint64_t word;

	OK(gmem_view_new(vm, &view));
	OK(gmem_view_store(view, gpa, 8, GMEM_RELEASE, 0x600df00d));
	OK(gmem_view_load(view, gpa, 8, GMEM_ACQUIRE, &word));
	CHECK_EQ(word, 0x600df00d);
	gmem_view_free(view);
}

static bool has(int type, uint32_t backing)
{
	return expect_vm(type)->backings & 1u << backing;
}

TEST(a_jail_without_dev_kvm_has_guest_memory_as_before)
{
	GMEM_OPTS(gmem_transfer_result, result);
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	for (uint32_t b = GMEM_BACKING_HOST; b <= GMEM_BACKING_SHARED; b++)
		if (has(DEFAULT_VM, b))
			add(lab.vm, b, b * GIB);
	fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));
	CHECK_EQ(write(fd, "image", 5), 5);

	enter_jail();
	for (uint32_t b = GMEM_BACKING_HOST; b <= GMEM_BACKING_SHARED; b++) {
		struct gmem_region *region;

		if (!has(DEFAULT_VM, b))
			continue;
		in_case("%s memory", gmem_backing_name(b));
		use(lab.vm, b * GIB);
		region = add(lab.vm, b, ELSEWHERE);
		use(lab.vm, ELSEWHERE);
		OK(gmem_vm_populate(lab.vm, ELSEWHERE, lab.page, NULL, NULL));
		GUEST_LOADS(&lab.guest, ELSEWHERE, 0x600df00d);
		OK(gmem_region_remove(region));
	}
	OK(gmem_vm_load(lab.vm, GIB, fd, 0, 5, NULL, &result));
	CHECK_EQ(result.data_bytes, 5);
	lab_free(&lab);
	leave();
}

/* Anonymous but for pages 2, of a memfd, and 3, of a memfd that is mapped privately */
TEST(a_discard_in_the_jail_frees_up_to_what_would_not_be_zero)
{
	const uint64_t flags[] = { MAP_SHARED, MAP_PRIVATE };
	struct gmem_footprint footprint;
	struct lab lab;
	uint64_t page;
	char *hva;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	page = page_size();
	hva = gmem_region_hva(add(lab.vm, GMEM_BACKING_HOST, BASE));
	fd = (int)WORKS(memfd_create("over", MFD_CLOEXEC));
	WORKS(ftruncate(fd, (off_t)(PAGES * page)));
	CHECK_EQ(pwrite(fd, "file", 4, (off_t)(3 * page)), 4);

	enter_jail();
	memset(hva, 1, PAGES * page);
	OK(gmem_vm_discard(lab.vm, BASE, PAGES * page, NULL, &footprint));
	CHECK_EQ(footprint.done, PAGES * page);
	for (uint64_t i = 0; i < PAGES * page; i++)
		CHECK_EQ(hva[i], 0);

	for (uint64_t i = 0; i < ARRAY_SIZE(flags); i++)
		CHECK(mmap(hva + (2 + i) * page, page, PROT_READ | PROT_WRITE, MAP_FIXED | (int)flags[i], fd,
			   (off_t)((2 + i) * page)) != MAP_FAILED);
	memset(hva, 1, PAGES * page);
	REFUSED(gmem_vm_discard(lab.vm, BASE, PAGES * page, NULL, &footprint), -EOPNOTSUPP);
	CHECK(strstr(gmem_last_error(), "show the file again"));
	CHECK_EQ(footprint.done, 3 * page);
	for (uint64_t i = 0; i < PAGES * page; i++)
		CHECK_EQ(hva[i], i >= 3 * page);
	leave();
}

TEST(a_handle_can_be_made_in_the_jail)
{
	struct gmem_vm *vm;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	enter_jail();
	OK(gmem_vm_new(m.vm_fd, NULL, &vm));
	add(vm, GMEM_BACKING_HOST, BASE);
	use(vm, BASE);
	gmem_vm_free(vm);
	leave();
}

TEST(private_memory_is_converted_in_the_jail)
{
	struct lab lab;

	lab_new(&lab, PRIVATE_VM);
	enter_jail();
	add(lab.vm, GMEM_BACKING_PRIVATE, BASE);
	OK(gmem_vm_convert(lab.vm, BASE, page_size(), GMEM_STATE_PRIVATE, NULL, NULL));
	OK(gmem_vm_convert(lab.vm, BASE, page_size(), GMEM_STATE_SHARED, NULL, NULL));
	use(lab.vm, BASE);
	lab_free(&lab);
	leave();
}

/* ---- fork ---- */

/* A child has the same memory, cannot reach the VM, and changes nothing. */
static void child_of_fork(struct lab *lab, struct gmem_region *region, struct gmem_view *view)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_region *other = NULL;
	struct gmem_plan *plan;
	uint64_t word;

	OK(gmem_view_load(view, BASE, 8, GMEM_ACQUIRE, &word));
	CHECK_EQ(word, 1);
	OK(gmem_view_store(view, BASE, 8, GMEM_RELEASE, 2));

	OK(gmem_plan_new(gmem_vm_caps(lab->vm), &request, &plan));
	opts.plan = plan;
	REFUSED(gmem_region_add(lab->vm, OTHER, lab->page, &opts, &other), -EIO);
	CHECK(!other);
	REFUSED(gmem_region_move(region, OTHER), -EIO);
	REFUSED(gmem_region_remove(region), -EIO);
	CHECK_EQ(gmem_region_gpa(region), BASE);
	use(lab->vm, BASE + 64);

	gmem_plan_free(plan);
	gmem_view_free(view);
	gmem_vm_free(lab->vm);
}

static void fork_with(uint32_t backing)
{
	struct gmem_region *region;
	struct gmem_view *view;
	struct lab lab;
	uint64_t word;
	uint32_t wanted;
	pid_t child;
	int status;

	in_case("%s memory", gmem_backing_name(backing));
	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, PAGES, NULL);
	OK(gmem_view_new(lab.vm, &view));
	OK(gmem_view_store(view, BASE, 8, GMEM_RELEASE, 1));

	fflush(stdout);
	child = (pid_t)WORKS(fork());
	if (child == 0) {
		child_of_fork(&lab, region, view);
		leave();
	}
	WORKS(waitpid(child, &status, 0));
	CHECK_EQ(status, 0);

	/* Host memory is the process's, and copied with it; a guest_memfd never is. */
	wanted = backing == GMEM_BACKING_HOST ? 1 : 2;
	OK(gmem_view_load(view, BASE, 8, GMEM_ACQUIRE, &word));
	CHECK_EQ(word, wanted);
	GUEST_LOADS(&lab.guest, BASE, wanted);
	OK(gmem_region_move(region, OTHER));
	GUEST_LOADS(&lab.guest, OTHER, wanted);
	gmem_view_free(view);
	lab_free(&lab);
}

TEST(a_child_shares_the_files_and_cannot_change_the_VM)
{
	for (uint32_t b = GMEM_BACKING_HOST; b <= GMEM_BACKING_SHARED; b++)
		if (has(DEFAULT_VM, b))
			fork_with(b);
}

/* ---- exec ---- */

/* run by exec(): the number of file descriptors it was given */
static int count_inherited(void)
{
	struct dirent *entry;
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;

	if (!directory)
		return 99;
	while ((entry = readdir(directory))) {
		int fd = atoi(entry->d_name);

		count += fd > STDERR_FILENO && fd != dirfd(directory);
	}
	closedir(directory);
	return count;
}

TEST(exec_leaves_no_file_descriptor)
{
	char *const arguments[] = { (char *)"jail", (char *)"--count-inherited", NULL };
	char *const no_environment[] = { NULL };
	struct gmem_view *view;
	int status, before = 0;
	struct lab lab;
	pid_t child;

	/* the fds that the test was started with stay open */
	for (int fd = STDERR_FILENO + 1; fd < 1024; fd++)
		before += fcntl(fd, F_GETFD) == 0;
	lab_new(&lab, DEFAULT_VM);
	for (uint32_t b = GMEM_BACKING_HOST; b <= GMEM_BACKING_SHARED; b++)
		if (has(DEFAULT_VM, b))
			lab_add(&lab, b, b * GIB, PAGES, NULL);
	OK(gmem_view_new(lab.vm, &view));

	child = (pid_t)WORKS(fork());
	if (child == 0) {
		execve("/proc/self/exe", arguments, no_environment);
		_exit(98);
	}
	WORKS(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), before);
	gmem_view_free(view);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--count-inherited") == 0)
		return count_inherited();
	return run_tests(argc, argv);
}
