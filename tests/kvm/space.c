/* SPDX-License-Identifier: MIT */
/*
 * KVM's second address space: what an x86 vCPU sees in system management mode. The guest
 * loads a word outside of that mode, in it and outside again.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define SMRAM_GPA ((uint64_t)0x30000)	/* SMBASE after a reset */
#define SMRAM_SIZE ((uint64_t)0x10000)
#define ENTRY ((uint64_t)0x8000)	/* in SMRAM */
#define HIDDEN_GPA ((uint64_t)0xa0000)	/* what a PC hides outside of the mode */
#define HIDDEN_SIZE ((uint64_t)0x20000)
#define RAM_SIZE (1 * MIB)

struct spaces {
	struct machine m;
	struct gmem_vm *vm[2];
	uint64_t page;
};

static struct gmem_vm *new_handle(const struct spaces *s, uint32_t space)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_ADDRESS_SPACE, .caps = s->m.caps,
		  .address_space = space);
	struct gmem_vm *vm;

	OK(gmem_vm_new(s->m.vm_fd, &opts, &vm));
	return vm;
}

static void spaces_new(struct spaces *s)
{
	struct gmem_finding f;

	machine_new(&s->m, DEFAULT_VM);
	OK(gmem_caps_get(s->m.caps, GMEM_CAP_ADDRESS_SPACES, &f));
	if (f.value < 2)
		skip("this VM has one address space");
	s->page = (uint64_t)sysconf(_SC_PAGESIZE);
	for (uint32_t i = 0; i < 2; i++)
		s->vm[i] = new_handle(s, i);
}

static void spaces_free(struct spaces *s)
{
	gmem_vm_free(s->vm[1]);
	gmem_vm_free(s->vm[0]);
	machine_free(&s->m);
}

static struct gmem_region *add(const struct spaces *s, uint32_t space, uint32_t backing, uint64_t gpa,
			       uint64_t size, void *hva)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = hva ? GMEM_REGION_HVA : 0, .hva = hva);
	struct gmem_region *region;
	struct gmem_plan *plan;

	require_backing(&s->m, backing, &plan);
	opts.plan = plan;
	OK(gmem_region_add(s->vm[space], gpa, size, &opts, &region));
	gmem_plan_free(plan);
	return region;
}

static void *at(struct gmem_region *region, uint64_t offset)
{
	return (char *)gmem_region_hva(region) + offset;
}

TEST(one_address_more_than_there_are_is_refused)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_ADDRESS_SPACE);
	struct gmem_finding f;
	struct gmem_vm *vm;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	OK(gmem_caps_get(m.caps, GMEM_CAP_ADDRESS_SPACES, &f));
	opts.address_space = (uint32_t)f.value;
	REFUSED(gmem_vm_new(m.vm_fd, &opts, &vm), -EINVAL);
	CHECK(strstr(gmem_last_error(), "no address space"));
	opts.address_space = 0;
	OK(gmem_vm_new(m.vm_fd, &opts, &vm));
	gmem_vm_free(vm);
	machine_free(&m);
}

TEST(handles_of_two_spaces_do_not_disturb_each_other)
{
	static const uint32_t backings[] = { GMEM_BACKING_HOST, GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED };
	struct gmem_region *first, *second, *upper;
	struct gmem_view *view;
	struct spaces s;
	char bytes[8];

	spaces_new(&s);
	for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
		in_case("backing %s", gmem_backing_name(backings[i]));
		first = add(&s, 0, backings[i], MIB, MIB, NULL);
		second = add(&s, 1, backings[i], MIB, MIB, NULL);
		CHECK_EQ(gmem_region_slot(second) - gmem_region_slot(first), 0x10000);
		strcpy(at(first, 0), "first");
		strcpy(at(second, 0), "second");
		OK(gmem_view_new(s.vm[1], &view));
		OK(gmem_view_read(view, MIB, bytes, sizeof(bytes), NULL));
		CHECK_STR(bytes, "second");
		gmem_view_free(view);

		OK(gmem_region_split(second, s.page, &upper));
		OK(gmem_region_move(second, 4 * MIB));
		OK(gmem_region_remove(first));
		OK(gmem_region_remove(upper));
		OK(gmem_region_remove(second));
	}
	gmem_vm_free(s.vm[1]);
	s.vm[1] = new_handle(&s, 1);
	add(&s, 1, GMEM_BACKING_SHARED, MIB, MIB, NULL);
	spaces_free(&s);
}

TEST(memory_of_one_space_is_put_into_the_other)
{
	struct gmem_region *ram, *again;
	struct gmem_plan *plan;
	struct spaces s;
	uint64_t offset;

	spaces_new(&s);
	ram = add(&s, 0, GMEM_BACKING_SHARED, 0, MIB, NULL);
	again = add(&s, 1, GMEM_BACKING_HOST, 0, MIB, gmem_region_hva(ram));
	OK(gmem_region_remove(again));

	GMEM_OPTS(gmem_region_opts, opts, .file = gmem_region_file(ram, &offset));
	REFUSED(gmem_region_add(s.vm[1], 0, MIB, &opts, &again), -EEXIST);
	CHECK(raw_gmem_slot(s.m.vm_fd, 0x10000 + 100, (uint32_t)KVM_MEM_GUEST_MEMFD, 0, MIB,
			    gmem_region_hva(ram), gmem_file_fd(opts.file), 0) < 0);
	require_backing(&s.m, GMEM_BACKING_MAPPED, &plan);
	opts.plan = plan;
	OK(gmem_region_add(s.vm[1], 0, MIB, &opts, &again));
	strcpy(at(ram, 5), "both");
	CHECK_STR((char *)at(again, 5), "both");
	gmem_plan_free(plan);
	spaces_free(&s);
}

TEST(foreign_memslot_is_recognised_in_its_space)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT);
	struct gmem_region *region;
	struct gmem_vm *other;
	struct spaces s;

	spaces_new(&s);
	add(&s, 0, GMEM_BACKING_SHARED, 4 * MIB, MIB, NULL);
	add(&s, 1, GMEM_BACKING_SHARED, 0, MIB, NULL);
	other = new_handle(&s, 1);
	REFUSED(gmem_region_add(other, 2 * MIB, 2 * MIB, &opts, &region), -EEXIST);
	CHECK(strstr(gmem_last_error(), "did not set"));
	opts.slot = 5;
	OK(gmem_region_add(other, 4 * MIB, MIB, &opts, &region));
	gmem_vm_free(other);
	spaces_free(&s);
}

TEST(image_and_dump_are_those_of_the_space)
{
	GMEM_OPTS(gmem_dump_opts, dump, .flags = GMEM_DUMP_LAYOUT_ONLY);
	struct gmem_region *smram;
	struct spaces s;
	char text[2048] = "";
	int fd;

	spaces_new(&s);
	add(&s, 0, GMEM_BACKING_SHARED, 0, MIB, NULL);
	smram = add(&s, 1, GMEM_BACKING_SHARED, SMRAM_GPA, SMRAM_SIZE, NULL);
	strcpy(at(smram, ENTRY), "handler");
	fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));
	OK(gmem_vm_save(s.vm[1], fd, NULL, NULL));
	memset(at(smram, 0), 7, SMRAM_SIZE);
	REFUSED(gmem_vm_restore(s.vm[0], fd, NULL, NULL), -EEXIST);
	OK(gmem_vm_restore(s.vm[1], fd, NULL, NULL));
	CHECK_STR((char *)at(smram, ENTRY), "handler");

	WORKS(ftruncate(fd, 0));
	WORKS(lseek(fd, 0, SEEK_SET));
	OK(gmem_vm_dump(s.vm[1], fd, &dump));
	CHECK(pread(fd, text, sizeof(text) - 1, 0) > 0);
	CHECK(strstr(text, "\"address_space\":1") && strstr(text, "\"gpa\":196608,\"size\":65536"));
	CHECK(strstr(text, "\"slot\":0,") && !strstr(text, "\"size\":1048576,\"backing\""));
	close(fd);
	spaces_free(&s);
}

/* ---- a guest in system management mode ---- */

#ifdef __x86_64__

/* Load a word through ds, report it to port 0x10; twice */
static const unsigned char outside[] = {
	0x66, 0xa1, 0x00, 0x00,		/* mov eax, ds:[0] */
	0x66, 0xe7, 0x10,		/* out 0x10, eax */
	0x66, 0xa1, 0x00, 0x00,
	0x66, 0xe7, 0x10,
	0xf4,				/* hlt */
};

static const unsigned char handler[] = {
	0x66, 0x67, 0xa1, 0x00, 0x00, 0x0a, 0x00,	/* mov eax, ds:[0xa0000] */
	0x66, 0xe7, 0x10,				/* out 0x10, eax */
	0x0f, 0xaa,					/* rsm */
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	uint64_t size;
};

static void vcpu_new(struct vcpu *v, const struct spaces *s)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	v->fd = (int)WORKS(ioctl(s->m.vm_fd, KVM_CREATE_VCPU, 0));
	v->size = (uint64_t)WORKS(ioctl(s->m.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0));
	v->run = mmap(NULL, v->size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	CHECK(v->run != MAP_FAILED);
	WORKS(ioctl(v->fd, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = HIDDEN_GPA;
	sregs.ds.selector = HIDDEN_GPA >> 4;
	WORKS(ioctl(v->fd, KVM_SET_SREGS, &sregs));
	WORKS(ioctl(v->fd, KVM_SET_REGS, &regs));
}

static void vcpu_free(struct vcpu *v)
{
	munmap(v->run, v->size);
	close(v->fd);
}

/* The word that the guest reports next, and whether it is in the mode then */
static uint32_t next_report(struct vcpu *v, bool in_smm)
{
	int result, interruptions = 0;
	uint32_t value;

	/* An emulated processor may leave for work of the kernel's, without a signal. */
	do {
		result = ioctl(v->fd, KVM_RUN, 0);
	} while (result < 0 && errno == EINTR && ++interruptions < 1000);
	WORKS(result);
	if (v->run->exit_reason != KVM_EXIT_IO)
		FAIL("exit reason %u", v->run->exit_reason);
	CHECK_EQ(v->run->io.port, 0x10);
	CHECK_EQ(v->run->io.size, 4);
	CHECK_EQ(!!(v->run->flags & KVM_RUN_X86_SMM), in_smm);
	memcpy(&value, (char *)v->run + v->run->io.data_offset, sizeof(value));
	return value;
}

TEST(guest_sees_other_memory_in_management_mode)
{
	struct gmem_region *ram, *smram, *hidden;
	uint32_t word = 0x51de0000, secret = 0x5ec4e700;
	struct spaces s;
	struct vcpu v;

	spaces_new(&s);
	if (kvm_cap(s.m.vm_fd, KVM_CAP_X86_SMM) < 1)
		skip("no system management mode here");
	ram = add(&s, 0, GMEM_BACKING_SHARED, 0, RAM_SIZE, NULL);
	smram = add(&s, 1, GMEM_BACKING_SHARED, SMRAM_GPA, SMRAM_SIZE, NULL);
	hidden = add(&s, 1, GMEM_BACKING_SHARED, HIDDEN_GPA, HIDDEN_SIZE, NULL);
	add(&s, 1, GMEM_BACKING_HOST, 0, SMRAM_GPA, gmem_region_hva(ram));
	memcpy(at(ram, 0x1000), outside, sizeof(outside));
	memcpy(at(ram, HIDDEN_GPA), &word, sizeof(word));
	memcpy(at(smram, ENTRY), handler, sizeof(handler));
	memcpy(at(hidden, 0), &secret, sizeof(secret));

	vcpu_new(&v, &s);
	CHECK_EQ(next_report(&v, false), word);
	WORKS(ioctl(v.fd, KVM_SMI, 0));
	CHECK_EQ(next_report(&v, true), secret);
	CHECK_EQ(next_report(&v, false), word);
	/* KVM saved the state of the processor in this SMRAM, and not in RAM at its address. */
	CHECK(memcmp(at(smram, 0xfe00), at(ram, SMRAM_GPA + 0xfe00), 0x200) != 0);
	vcpu_free(&v);
	spaces_free(&s);
}

#endif

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
