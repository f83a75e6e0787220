/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lab.h"

#define PROBE_SLOT (GUEST_SLOT + 1)
#define PROBE_GPA (3 * GIB)

void lab_new(struct lab *lab, int type)
{
	GMEM_OPTS(gmem_vm_opts, opts);

	*lab = (struct lab){ .page = page_size() };
	machine_new(&lab->m, type);
	opts.caps = lab->m.caps;
	OK(gmem_vm_new(lab->m.vm_fd, &opts, &lab->vm));
	guest_new(&lab->guest, lab->m.vm_fd, lab->m.kvm_fd);
}

void lab_free(struct lab *lab)
{
	guest_free(&lab->guest);
	gmem_vm_free(lab->vm);
	machine_free(&lab->m);
}

struct gmem_region *lab_add(struct lab *lab, uint32_t backing, uint64_t gpa, uint64_t pages,
			    const struct gmem_region_opts *opts)
{
	struct gmem_region *region = NULL;
	struct gmem_region_opts full = { .size = sizeof(full) };
	struct gmem_plan *plan;

	if (opts)
		full = *opts;
	require_backing(&lab->m, backing, &plan);
	full.plan = plan;
	OK(gmem_region_add(lab->vm, gpa, pages * lab->page, &full, &region));
	gmem_plan_free(plan);
	CHECK(region);
	CHECK_EQ(gmem_region_backing(region), backing);
	CHECK_EQ(gmem_region_gpa(region), gpa);
	CHECK_EQ(gmem_region_size(region), pages * lab->page);
	CHECK(gmem_region_hva(region));
	return region;
}

struct gmem_region *lab_add_memory(struct lab *lab, uint64_t gpa, const struct lab_memory *memory)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA, .hva = memory->hva);

	return lab_add(lab, GMEM_BACKING_HOST, gpa, memory->size / lab->page, &opts);
}

void lab_unmap_memory(struct lab_memory *memory)
{
	WORKS(munmap(memory->hva, memory->size));
	if (memory->fd >= 0)
		WORKS(close(memory->fd));
}

int lab_convert(struct lab *lab, uint64_t gpa, uint64_t size, uint64_t attributes)
{
	struct gmem_kvm_memory_attributes args = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
	};

	return (int)SYS(ioctl(lab->m.vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &args));
}

/* The guest stores into a file bound beside other memory: which of them has it? */
static bool store_reaches_file(struct lab *lab, uint32_t *file_page, uint32_t *other, int fd)
{
	CHECK_RESULT(raw_gmem_slot(lab->m.vm_fd, PROBE_SLOT, 0, PROBE_GPA, lab->page, other, fd, 0), 0);
	GUEST_STORES(&lab->guest, PROBE_GPA, 0xbeef);
	CHECK_RESULT(raw_slot(lab->m.vm_fd, PROBE_SLOT, 0, 0, 0, NULL), 0);
	CHECK((host_load(file_page) == 0xbeef) != (host_load(other) == 0xbeef));
	return host_load(file_page) == 0xbeef;
}

bool lab_reaches_file(struct lab *lab)
{
	const uint64_t flags = GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED;
	int fd = (int)WORKS(raw_create(lab->m.vm_fd, lab->page, flags));
	void *file, *other;
	bool reaches;

	file = mmap(NULL, lab->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	other = mmap(NULL, lab->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(file != MAP_FAILED && other != MAP_FAILED);
	reaches = store_reaches_file(lab, file, other, fd);
	munmap(other, lab->page);
	munmap(file, lab->page);
	close(fd);

	if (expect()->reaches == GUEST_REACHES_FILE)
		CHECK(reaches);
	else
		note("guests of this host reach %s", reaches ? "the file" : "the host address");
	return reaches;
}

void lab_for_each_way(uint32_t ways, void (*run)(int type, uint32_t backing, void *data),
		      void *data)
{
	unsigned int count = 0;

	for (int type = DEFAULT_VM; type <= PRIVATE_VM; type++) {
		uint32_t possible = expect_vm(type)->exists ? expect_vm(type)->backings & ways : 0;

		for (uint32_t way = GMEM_BACKING_HOST; way <= GMEM_BACKING_PRIVATE; way++) {
			if (!(possible & 1u << way))
				continue;
			in_case("%s memory, VM type %d", gmem_backing_name(way), type);
			run(type, way, data);
			count++;
		}
	}
	if (!count)
		skip("no VM here has any of the ways of backing this is about");
}

uint64_t lab_read_number(const char *path, const char *label)
{
	FILE *file = fopen(path, "re");
	uint64_t number = 0;
	char line[256];

	CHECK(file);
	while (!number && fgets(line, sizeof(line), file))
		if (strncmp(line, label, strlen(label)) == 0)
			number = strtoull(line + strlen(label), NULL, 10);
	fclose(file);
	return number;
}

int lab_new_file(void)
{
	int fd = open("/var/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

	return fd >= 0 ? fd : (int)WORKS(memfd_create("file", MFD_CLOEXEC));
}

int lab_die(void *data, uint64_t done, uint64_t total)
{
	unsigned *left = data;

	(void)done;
	(void)total;
	if (--*left == 0)
		raise(SIGKILL);
	return 0;
}

/* ---- poison ---- */

static void on_poison(int number)
{
	(void)number;
	siglongjmp(catch_point, 1);
}

int lab_poison(void *hva, uint64_t size)
{
	struct sigaction action = { .sa_handler = on_poison }, old;
	volatile int err = 0;

	WORKS(sigaction(SIGBUS, &action, &old));
	if (!sigsetjmp(catch_point, 1))
		err = (int)SYS(madvise(hva, size, MADV_HWPOISON));
	WORKS(sigaction(SIGBUS, &old, NULL));
	return err;
}

void lab_require_poison(void)
{
	uint64_t page = page_size();
	char *hva;
	int err;

	if (!emulated_machine())
		skip("would take a page of memory from this machine until it is started again");
	hva = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK((void *)hva != MAP_FAILED);
	*(volatile char *)hva = 1;
	err = lab_poison(hva, page);
	munmap(hva, page);
	if (err == -EPERM)
		skip("only root can poison pages");
	if (err == -EINVAL)
		skip("this kernel cannot poison pages (CONFIG_MEMORY_FAILURE)");
	CHECK_RESULT(err, 0);
}

int lab_listen(void)
{
	/* The kernel chooses an abstract name. */
	const struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	WORKS(sock);
	WORKS(bind(sock, (const struct sockaddr *)&address, sizeof(sa_family_t)));
	WORKS(listen(sock, 8));
	return sock;
}

int lab_connect(int listening)
{
	struct sockaddr_un address;
	socklen_t size = sizeof(address);
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	WORKS(sock);
	WORKS(getsockname(listening, (struct sockaddr *)&address, &size));
	WORKS(connect(sock, (const struct sockaddr *)&address, size));
	return sock;
}
