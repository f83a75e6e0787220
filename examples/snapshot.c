/* SPDX-License-Identifier: MIT */
/*
 * snapshot: saves a guest that counts, and continues it in another VM.
 *
 * The guest adds 1 to a register and stores it in memory, again and again. When
 * it has counted to 5, the program saves its memory to a file, keeps its
 * registers and destroys the VM. A new VM gets both, and the guest continues
 * with 6. The program also compares the rest of memory, a pattern with gaps.
 * It prints each step, and how many bytes of memory and file each took.
 *
 * A snapshot that is kept gets its name only when all of it is on the disk, so that
 * under this name there is always a whole snapshot: the new one, or the one before.
 *
 * usage: snapshot [FILE]    FILE is kept; without it a temporary one is used
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gmem.h>

#include "counter.h"
#include "start.h"


#define RAM	((uint64_t)64 << 20)
#define CODE	((uint64_t)0x4000)
#define COUNT	((uint64_t)0x8000)	/* where the guest stores its number */
#define PATTERN	((uint64_t)1 << 20)	/* the pattern begins here */
#define BLOCK	4096

struct machine {
	int vm_fd;
	int vcpu;
	int run_size;
	struct kvm_run *run;
	struct gmem_vm *vm;
	char *ram;
};

static int must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "snapshot: %s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

static int gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "snapshot: %s: %s\n", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
	return result;
}

static void expect(int truth, const char *what)
{
	if (!truth) {
		fprintf(stderr, "snapshot: expected %s\n", what);
		exit(EXIT_FAILURE);
	}
}

static void new_machine(int kvm, struct machine *m)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_region *ram;
	struct gmem_plan *plan;

	m->vm_fd = must(create_vm(kvm, 0), "KVM_CREATE_VM");
	gmem_must(gmem_vm_new(m->vm_fd, NULL, &m->vm), "attaching to the VM");
	gmem_must(gmem_plan_new(gmem_vm_caps(m->vm), &request, &plan), "planning");
	opts.plan = plan;
	gmem_must(gmem_region_add(m->vm, 0, RAM, &opts, &ram), "adding RAM");
	m->ram = gmem_region_hva(ram);
	gmem_plan_free(plan);

	m->vcpu = must(ioctl(m->vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	m->run_size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	m->run = mmap(NULL, (size_t)m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	must(m->run == MAP_FAILED ? -1 : 0, "mapping the vCPU");
}

static void free_machine(struct machine *m)
{
	must(munmap(m->run, (size_t)m->run_size), "unmapping the vCPU");
	must(close(m->vcpu), "closing the vCPU");
	gmem_vm_free(m->vm);
	must(close(m->vm_fd), "closing the VM");
}

/* Lets the guest count once. Returns its number. */
static uint32_t count_once(struct machine *m)
{
	int result;

	do
		result = ioctl(m->vcpu, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	must(result, "KVM_RUN");
	expect(is_counted(m->run, RAM), "the guest to leave when it has counted");
	return read_number((void *)(m->ram + COUNT));
}

/* Of each three blocks, one is zero, one has a single byte, and one is full. */
static void expected_block(uint64_t block, unsigned char *bytes)
{
	memset(bytes, block % 3 == 2 ? (int)(block * 7 % 251 + 1) : 0, BLOCK);
	if (block % 3 == 1)
		bytes[block % BLOCK] = 1;
}

static void fill_pattern(struct machine *m)
{
	unsigned char bytes[BLOCK];

	for (uint64_t at = PATTERN; at < RAM / 2; at += BLOCK) {
		expected_block(at / BLOCK, bytes);
		if ((at / BLOCK) % 3 != 0)
			memcpy(m->ram + at, bytes, BLOCK);
	}
}

static void check_pattern(const struct machine *m)
{
	static const unsigned char nothing[BLOCK];
	unsigned char bytes[BLOCK];

	for (uint64_t at = PATTERN; at < RAM; at += BLOCK) {
		expected_block(at / BLOCK, bytes);
		expect(!memcmp(m->ram + at, at < RAM / 2 ? bytes : nothing, BLOCK),
		       "every block of memory as it was");
	}
}

/* Draws a bar if standard error is a terminal. */
static int show_progress(void *what, uint64_t done, uint64_t total)
{
	static const char bar[] = "########################################";
	int width = (int)sizeof(bar) - 1;
	int full = total ? (int)(done * (uint64_t)width / total) : 0;

	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r%-9s [%.*s%*s]", (const char *)what, full, bar, width - full, "");
	return 0;
}

static double in_mib(uint64_t bytes)
{
	return (double)bytes / (1 << 20);
}

static void report(const char *what, const struct gmem_transfer_result *result)
{
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\n");
	printf("   %s %.1f MiB of memory, another %.1f MiB are zero; the image has %.1f MiB,\n"
	       "   through %s.\n", what, in_mib(result->data_bytes), in_mib(result->zero_bytes),
	       in_mib(result->file_bytes),
	       result->engine == GMEM_ENGINE_IO_URING ? "io_uring" : "read and write");
}

/* The name of the file until it is complete: in the same directory, which rename(2) needs. */
static const char *unfinished_name(const char *path)
{
	static char name[PATH_MAX];

	if (snprintf(name, sizeof(name), "%s.unfinished", path) >= (int)sizeof(name)) {
		errno = ENAMETOOLONG;
		must(-1, path);
	}
	return name;
}

/* A save that fails leaves nothing, and an older file of this name as it is. */
static void save(struct machine *m, int fd, const char *path)
{
	char what[] = "saving";
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC, .progress = show_progress,
		  .progress_data = what);
	GMEM_OPTS(gmem_transfer_result, result);
	int saved;

	saved = gmem_vm_save(m->vm, fd, &opts, &result);
	if (saved < 0 && path)
		unlink(unfinished_name(path));
	gmem_must(saved, "saving");
	report("Saved", &result);
}

/*
 * Gives the image its name, after it was synced. Until the directory is synced, too, a
 * host that goes down may come back with the old file of that name.
 */
static void publish(const char *path)
{
	char copy[PATH_MAX];
	int directory;

	must(rename(unfinished_name(path), path), path);
	snprintf(copy, sizeof(copy), "%s", path);
	directory = must(open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "the directory");
	must(fsync(directory), "syncing the directory");
	must(close(directory), "closing the directory");
}

static void restore(struct machine *m, int fd)
{
	char what[] = "restoring";
	GMEM_OPTS(gmem_transfer_opts, opts, .progress = show_progress, .progress_data = what);
	GMEM_OPTS(gmem_transfer_result, result);

	gmem_must(gmem_vm_restore(m->vm, fd, &opts, &result), "restoring");
	report("Restored", &result);
}

static int open_image(const char *path)
{
	struct stat old;
	FILE *file;

	if (path) {
		/* The last step, a rename, would also replace a device, or fail for a directory. */
		if (stat(path, &old) == 0 && !S_ISREG(old.st_mode)) {
			fprintf(stderr, "snapshot: %s is no regular file\n", path);
			exit(2);
		}
		unlink(unfinished_name(path));
		return must(open(unfinished_name(path), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600),
			    path);
	}
	file = tmpfile();
	must(file ? 0 : -1, "a temporary file");
	return must(fcntl(fileno(file), F_DUPFD_CLOEXEC, 0), "a temporary file");
}

static const char help[] =
"usage: snapshot [FILE]\n"
"Saves the memory of a guest that counts, and continues it in another VM.\n"
"FILE is where the snapshot is kept; without it a temporary file is used.\n";

int main(int argc, char **argv)
{
	struct registers registers;
	struct machine m;
	uint32_t number = 0;
	int kvm, fd;

	if (argc != 2 || argv[1][0] == '-')
		no_arguments(argc, argv, help);
	kvm = open_kvm("snapshot");
	fd = open_image(argc == 2 ? argv[1] : NULL);

	new_machine(kvm, &m);
	memcpy(m.ram + CODE, instructions, sizeof(instructions));
	__builtin___clear_cache(m.ram + CODE, m.ram + CODE + sizeof(instructions));
	fill_pattern(&m);
	must(start_counting(m.vm_fd, m.vcpu, CODE, COUNT, RAM), "setting up the vCPU");
	while (number < 5)
		number = count_once(&m);
	printf("1. The guest has counted to %" PRIu32 ".\n", number);
	expect(number == 5, "5");

	/* Let KVM complete the last exit, so that the registers are final. */
	m.run->immediate_exit = 1;
	expect(ioctl(m.vcpu, KVM_RUN, 0) < 0 && errno == EINTR, "the vCPU to stop");
	must(get_registers(m.vcpu, &registers), "reading the registers");
	save(&m, fd, argc == 2 ? argv[1] : NULL);
	if (argc == 2)
		publish(argv[1]);
	free_machine(&m);
	printf("2. That VM is gone.\n");

	new_machine(kvm, &m);
	restore(&m, fd);
	expect(read_number((void *)(m.ram + COUNT)) == 5, "5 in the new VM's memory");
	must(set_registers(m.vm_fd, m.vcpu, &registers), "setting the registers");
	check_pattern(&m);
	number = count_once(&m);
	printf("3. In a new VM the guest goes on with %" PRIu32 ", ", number);
	expect(number == 6, "6");
	while (number < 10)
		number = count_once(&m);
	printf("and has counted to %" PRIu32 ".\n", number);
	free_machine(&m);
	must(close(fd), "closing the image");
	must(close(kvm), "closing /dev/kvm");
	return exit_status();
}
