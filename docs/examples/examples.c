/* SPDX-License-Identifier: MIT */
/* Runs the examples, each in a process of its own. Speaks TAP. */
#include "examples.h"

#include <sys/wait.h>

int kvm_fd, vm_fd, vcpu_fd;
struct kvm_run *run;
struct gmem_vm *vm;
struct gmem_plan *plan;
struct gmem_region *ram;
struct gmem_view *view;

/* meson.build writes the list: X(name) for each. */
#define X(name) void example_##name(void);
#include "list.h"
#undef X

static const struct {
	const char *name;
	void (*run)(void);
} examples[] = {
#define X(name) { #name, example_##name },
#include "list.h"
#undef X
};

#define COUNT (sizeof(examples) / sizeof(examples[0]))

int temporary_file(void)
{
	const int fd = memfd_create("temporary", MFD_CLOEXEC);

	if (fd < 0)
		err(1, "memfd_create");
	return fd;
}

/* arm64 runs no vCPU that was not told what it is. */
static int initialise_vcpu(void)
{
#ifdef __aarch64__
	struct kvm_vcpu_init init;

	if (ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, &init) < 0)
		return -1;
	return ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, &init);
#else
	return 0;
#endif
}

static void set_up(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);
	const int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	if (size < 0 || vm_fd < 0 || vcpu_fd < 0 || initialise_vcpu() < 0)
		err(1, "a VM");
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	if (run == MAP_FAILED)
		err(1, "kvm_run");
	if (gmem_vm_new(vm_fd, NULL, &vm) < 0 ||
	    gmem_plan_new(gmem_vm_caps(vm), &request, &plan) < 0)
		errx(1, "%s", gmem_last_error());
	opts.plan = plan;
	if (gmem_region_add(vm, 0, 4 * MIB, &opts, &ram) < 0 || gmem_view_new(vm, &view) < 0)
		errx(1, "%s", gmem_last_error());
}

static int run_apart(void (*example)(void), char *said, size_t size)
{
	int out[2], status;
	size_t length = 0;
	ssize_t count;
	pid_t pid;

	fflush(stdout);
	if (pipe(out) < 0 || (pid = fork()) < 0)
		err(1, "fork");
	if (!pid) {
		dup2(out[1], STDOUT_FILENO);
		dup2(out[1], STDERR_FILENO);
		alarm(60);
		set_up();
		example();
		exit(0);
	}
	close(out[1]);
	while ((count = read(out[0], said + length, size - 1 - length)) > 0)
		length += (size_t)count;
	said[length] = '\0';
	close(out[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void)
{
	int failures = 0;

	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0) {
		printf("1..0 # skip /dev/kvm: %s\n", strerror(errno));
		return 0;
	}
	printf("1..%zu\n", COUNT);
	for (size_t i = 0; i < COUNT; i++) {
		char said[4096], *rest = said, *line;
		const int status = run_apart(examples[i].run, said, sizeof(said));

		if (status == 77) {
			said[strcspn(said, "\n")] = '\0';
			printf("ok %zu - %s # skip %s\n", i + 1, examples[i].name, said);
			continue;
		}
		failures += status != 0;
		while (status && (line = strsep(&rest, "\n")))
			printf("# %s\n", line);
		printf("%sok %zu - %s\n", status ? "not " : "", i + 1, examples[i].name);
	}
	return failures ? 1 : 0;
}
