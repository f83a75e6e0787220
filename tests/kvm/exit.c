/* SPDX-License-Identifier: MIT */
/* Exits of a real guest, what is done about them, and what it costs */
#include <string.h>
#include <unistd.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define PAGES 8
#define RAW_SLOT (GUEST_SLOT + 2)

struct fixture {
	struct lab lab;
	struct gmem_region *region;
	struct gmem_vcpu *vcpu;
	struct gmem_exit exit;
	uint64_t page;
};

static void begin(struct fixture *f, int type, uint32_t backing)
{
	*f = (struct fixture){ .page = page_size() };
	lab_new(&f->lab, type);
	f->region = lab_add(&f->lab, backing, BASE, PAGES, NULL);
	OK(gmem_vcpu_new(f->lab.vm, f->lab.guest.vcpu_fd, NULL, &f->vcpu));
}

static void end(struct fixture *f)
{
	gmem_vcpu_free(f->vcpu);
	lab_free(&f->lab);
}

/* Runs until the guest is done: 0 and its report, or the error of an exit that cannot be handled */
static int go(struct fixture *f, uint32_t *ret)
{
	struct guest *guest = &f->lab.guest;
	int result, error, handled;

	for (;;) {
		result = ioctl(guest->vcpu_fd, KVM_RUN, 0);
		error = errno;
		handled = gmem_vcpu_handle_exit(f->vcpu, guest->run, result, error, &f->exit);
		if (handled < 0)
			return handled;
		if (handled || (result < 0 && error == EINTR))
			continue;
		if (result < 0)
			FAIL("KVM_RUN: %s", strerror(error));
		if (!guest_finish(guest, ret))
			FAIL("exit reason %u", guest->run->exit_reason);
		return 0;
	}
}

static int store(struct fixture *f, uint64_t gpa, uint32_t value)
{
	uint32_t report;

	guest_aim_store(&f->lab.guest, gpa, value);
	return go(f, &report);
}

static uint32_t load(struct fixture *f, uint64_t gpa)
{
	uint32_t value = 0;

	guest_aim_load(&f->lab.guest, gpa);
	OK(go(f, &value));
	return value;
}

/* ---- what a guest asks for ---- */

#ifdef __x86_64__

static struct gmem_stats stats_of(struct fixture *f)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	OK(gmem_vm_stats(f->lab.vm, &stats));
	CHECK_EQ(stats.made_private - stats.made_shared, stats.bytes_private);
	return stats;
}

static uint32_t state_at(struct fixture *f, uint64_t gpa)
{
	struct gmem_state_range range;

	CHECK_EQ(gmem_vm_state(f->lab.vm, gpa, f->page, &range, 1), 1);
	return range.state;
}

#define TO_SHARED 0x00u
#define TO_PRIVATE 0x10u

static void begin_with_hypercalls(struct fixture *f)
{
	begin(f, PRIVATE_VM, GMEM_BACKING_PRIVATE);
	guest_allow_requests(&f->lab.guest);
}

/* Let the guest make a request; the answer it gets */
static int32_t request(struct fixture *f, uint64_t gpa, uint32_t pages, uint32_t attributes)
{
	uint32_t answer = 0;

	guest_aim_request(&f->lab.guest, (uint32_t)gpa, pages, attributes);
	OK(go(f, &answer));
	return (int32_t)answer;
}

TEST(a_request_is_done_and_the_guest_goes_on)
{
	struct gmem_view *view;
	struct fixture f;
	uint32_t value;

	begin_with_hypercalls(&f);
	OK(gmem_view_new(f.lab.vm, &view));
	OK(store(&f, BASE, 0x11));
	OK(gmem_view_read(view, BASE, &value, sizeof(value), NULL));
	CHECK_EQ(value, 0x11);

	CHECK_RESULT(request(&f, BASE, 2, TO_PRIVATE), 0);
	CHECK_EQ(state_at(&f, BASE), GMEM_STATE_PRIVATE);
	CHECK_EQ(state_at(&f, BASE + 2 * f.page), GMEM_STATE_SHARED);
	CHECK_EQ(load(&f, BASE), 0);
	OK(store(&f, BASE, 0x22));
	CHECK_EQ(load(&f, BASE), 0x22);
	REFUSED(gmem_view_read(view, BASE, &value, sizeof(value), NULL), -EACCES);

	CHECK_RESULT(request(&f, BASE, 1, TO_SHARED), 0);
	CHECK_EQ(load(&f, BASE), 0);
	OK(gmem_view_read(view, BASE, &value, sizeof(value), NULL));
	CHECK_EQ(value, 0);
	CHECK_EQ(stats_of(&f).requests, 2);
	gmem_view_free(view);
	end(&f);
}

TEST(a_guest_is_told_what_it_cannot_have)
{
	static const struct {
		uint64_t gpa;
		uint32_t pages, attributes;
	} cases[] = {
		{ BASE, 1, TO_PRIVATE | 0x20 },
		{ BASE, 1, TO_PRIVATE | 0x80000000 },
		{ BASE, PAGES + 1, TO_PRIVATE },
		{ BASE - 4096, 2, TO_PRIVATE },
		{ BASE + PAGES * 4096, 1, TO_PRIVATE },
		{ BASE, 0xffffffff, TO_PRIVATE },
		{ BASE, 0xffffffff, TO_SHARED },
		/* these KVM refuses itself */
		{ BASE, 0, TO_PRIVATE },
		{ BASE + 1, 1, TO_PRIVATE },
	};
	struct gmem_stats stats;
	struct fixture f;

	begin_with_hypercalls(&f);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		in_case("gpa 0x%llx, 0x%x pages, attributes 0x%x",
			(unsigned long long)cases[i].gpa, cases[i].pages, cases[i].attributes);
		CHECK_RESULT(request(&f, cases[i].gpa, cases[i].pages, cases[i].attributes),
			     -EINVAL);
	}
	stats = stats_of(&f);
	CHECK_EQ(stats.requests_refused, ARRAY_SIZE(cases) - 2);
	CHECK_EQ(stats.convert_ioctls, 0);
	CHECK_EQ(stats.bytes_private, 0);
	CHECK_EQ(load(&f, BASE), 0);
	end(&f);
}

TEST(a_device_may_be_called_shared)
{
	struct fixture f;

	begin_with_hypercalls(&f);
	CHECK_RESULT(request(&f, BASE + 64 * MIB, 16, TO_SHARED), 0);
	CHECK_RESULT(request(&f, BASE + 64 * MIB, 16, TO_PRIVATE), -EINVAL);
	end(&f);
}

TEST(flipping_a_page_costs_no_memory)
{
	struct gmem_stats stats;
	struct fixture f;

	begin_with_hypercalls(&f);
	for (uint32_t i = 0; i < 500; i++) {
		CHECK_RESULT(request(&f, BASE + f.page, 1, i % 2 ? TO_SHARED : TO_PRIVATE), 0);
		OK(store(&f, BASE + f.page, i));
	}
	stats = stats_of(&f);
	CHECK_EQ(stats.requests, 500);
	CHECK_EQ(stats.conversions, 500);
	CHECK_EQ(stats.convert_ioctls, 500);
	CHECK_EQ(stats.discards, 500);
	CHECK_EQ(stats.resident_shared, f.page);
	CHECK_EQ(stats.resident_private, 0);
	CHECK_EQ(stats.doubled, 0);
	end(&f);
}

TEST(a_scattered_guest_is_counted_page_by_page)
{
	struct gmem_stats stats;
	struct fixture f;

	begin_with_hypercalls(&f);
	for (uint32_t i = 0; i < PAGES; i++)
		OK(store(&f, BASE + i * f.page, i));
	for (uint32_t i = 1; i < PAGES; i += 2)
		CHECK_RESULT(request(&f, BASE + i * f.page, 1, TO_PRIVATE), 0);
	for (uint32_t i = 0; i < PAGES; i++)
		OK(store(&f, BASE + i * f.page, i));
	stats = stats_of(&f);
	CHECK_EQ(stats.bytes_shared, PAGES / 2 * f.page);
	CHECK_EQ(stats.bytes_private, PAGES / 2 * f.page);
	CHECK_EQ(stats.resident_shared, PAGES / 2 * f.page);
	CHECK_EQ(stats.resident_private, PAGES / 2 * f.page);
	CHECK_EQ(stats.doubled, 0);
	CHECK_EQ(allocated_pages(gmem_file_fd(gmem_region_file(f.region, NULL))), PAGES / 2);
	end(&f);
}

TEST(memory_that_is_kept_is_doubled_and_says_so)
{
	GMEM_OPTS(gmem_convert_opts, keep, .discard = GMEM_DISCARD_NEVER);
	struct gmem_stats stats;
	struct fixture f;

	begin(&f, PRIVATE_VM, GMEM_BACKING_PRIVATE);
	for (uint32_t i = 0; i < 5; i++)
		OK(store(&f, BASE + i * f.page, i));
	OK(gmem_vm_convert(f.lab.vm, BASE + 2 * f.page, 4 * f.page, GMEM_STATE_PRIVATE, &keep, NULL));
	for (uint32_t i = 2; i < 6; i++)
		OK(store(&f, BASE + i * f.page, i));
	stats = stats_of(&f);
	CHECK_EQ(stats.resident_shared, 5 * f.page);
	CHECK_EQ(stats.resident_private, 4 * f.page);
	CHECK_EQ(stats.doubled, 3 * f.page);
	end(&f);
}

/* ---- faults ---- */

/* Private from the start, and the memory comes when it is needed */
TEST(a_private_touch_without_memory_is_told_and_then_converts)
{
	uint64_t gpa = BASE + 16 * MIB;
	struct gmem_stats stats;
	struct gmem_region *late;
	struct fixture f;

	begin(&f, PRIVATE_VM, GMEM_BACKING_PRIVATE);
	CHECK_RESULT(lab_convert(&f.lab, gpa, f.page, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
	REFUSED(store(&f, gpa + 8, 0x33), -ENOENT);
	CHECK_EQ(f.exit.kind, GMEM_EXIT_FAULT);
	CHECK_EQ(f.exit.state, GMEM_STATE_PRIVATE);
	CHECK_EQ(f.exit.gpa, gpa);
	CHECK_EQ(f.exit.size, f.page);

	late = lab_add(&f.lab, GMEM_BACKING_PRIVATE, gpa, 1, NULL);
	CHECK_EQ(gmem_vcpu_handle_exit(f.vcpu, f.lab.guest.run, -1, EFAULT, &f.exit), 1);
	CHECK_EQ(f.exit.repeats, 1);
	CHECK_EQ(state_at(&f, gpa), GMEM_STATE_PRIVATE);
	OK(store(&f, gpa + 8, 0x33));
	CHECK_EQ(load(&f, gpa + 8), 0x33);
	CHECK_EQ(host_load((char *)gmem_region_hva(late) + 8), 0);
	stats = stats_of(&f);
	CHECK_EQ(stats.faults_hole, 1);
	CHECK_EQ(stats.faults_private, 1);
	CHECK_EQ(stats.resident_private, f.page);
	end(&f);
}

TEST(a_private_touch_of_host_memory_is_told)
{
	struct fixture f;

	begin(&f, PRIVATE_VM, GMEM_BACKING_HOST);
	CHECK_RESULT(lab_convert(&f.lab, BASE, f.page, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
	REFUSED(store(&f, BASE, 1), -EOPNOTSUPP);
	CHECK_RESULT(lab_convert(&f.lab, BASE, f.page, 0), 0);
	OK(store(&f, BASE, 1));
	end(&f);
}

/* Somebody put a memslot there that has no private memory: nothing we do helps. */
TEST(a_fault_that_comes_back_for_ever_ends)
{
	struct gmem_stats stats;
	struct fixture f;

	begin(&f, PRIVATE_VM, GMEM_BACKING_PRIVATE);
	OK(gmem_vm_convert(f.lab.vm, BASE, f.page, GMEM_STATE_PRIVATE, NULL, NULL));
	CHECK_RESULT(raw_slot(f.lab.m.vm_fd, gmem_region_slot(f.region), 0, BASE, 0, NULL), 0);
	CHECK_RESULT(raw_slot(f.lab.m.vm_fd, gmem_region_slot(f.region), 0, BASE, PAGES * f.page,
			      gmem_region_hva(f.region)), 0);
	REFUSED(store(&f, BASE, 1), -ELOOP);
	CHECK_EQ(f.exit.repeats, 15);
	stats = stats_of(&f);
	CHECK_EQ(stats.faults_late, 15);
	CHECK_EQ(stats.faults_stuck, 1);
	CHECK_EQ(stats.convert_ioctls, 1);
	end(&f);
}

#endif

/* A file that is gone leaves a memslot that faults, with a description. */
TEST(a_lost_file_is_a_fault_at_the_page)
{
	uint64_t gpa = BASE + 64 * MIB;
	struct fixture f;
	int fd;

	begin(&f, DEFAULT_VM, GMEM_BACKING_HOST);
	require_create_flags(&f.lab.m, GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED);
	if (!lab_reaches_file(&f.lab))
		skip("guest accesses use the host address here");
	fd = raw_create(f.lab.m.vm_fd, f.page, GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED);
	CHECK_RESULT(raw_gmem_slot(f.lab.m.vm_fd, RAW_SLOT, 0, gpa, f.page, NULL, fd, 0), 0);
	WORKS(close(fd));
	REFUSED(store(&f, gpa + f.page - 64, 1), -ENOENT);
	CHECK_EQ(f.exit.kind, GMEM_EXIT_FAULT);
	CHECK_EQ(f.exit.state, GMEM_STATE_SHARED);
	CHECK_EQ(f.exit.gpa, gpa);
	CHECK_EQ(f.exit.size, f.page);
	CHECK_EQ(f.exit.unknown, 0);
	CHECK_RESULT(raw_slot(f.lab.m.vm_fd, RAW_SLOT, 0, gpa, 0, NULL), 0);
	end(&f);
}

TEST(other_exits_are_left_to_the_caller)
{
	struct fixture f;

	begin(&f, DEFAULT_VM, GMEM_BACKING_HOST);
	OK(store(&f, BASE, 0x44));
	CHECK_EQ(load(&f, BASE), 0x44);
	CHECK_EQ(f.exit.kind, GMEM_EXIT_OTHER);
	end(&f);
}

/* ---- pre-faulting ---- */

static void require_prefault(struct fixture *f)
{
	struct gmem_finding finding;
	uint64_t done = 7;

	CHECK_RESULT(gmem_caps_get(f->lab.m.caps, GMEM_CAP_PRE_FAULT, &finding), 0);
	if (finding.answer == GMEM_YES)
		return;
	REFUSED(gmem_vcpu_prefault(f->vcpu, BASE, f->page, &done), -EOPNOTSUPP);
	CHECK_EQ(done, 0);
	skip("no KVM_PRE_FAULT_MEMORY here, and the refusal says so");
}

TEST(prefaulting_allocates_private_memory)
{
	uint64_t done = 0;
	struct fixture f;
	int fd;

	begin(&f, PRIVATE_VM, GMEM_BACKING_PRIVATE);
	require_prefault(&f);
	fd = gmem_file_fd(gmem_region_file(f.region, NULL));
	OK(gmem_vm_convert(f.lab.vm, BASE, PAGES * f.page, GMEM_STATE_PRIVATE, NULL, NULL));
	CHECK_EQ(allocated_pages(fd), 0);
	OK(gmem_vcpu_prefault(f.vcpu, BASE + f.page, 3 * f.page, &done));
	CHECK_EQ(done, 3 * f.page);
	CHECK_EQ(allocated_pages(fd), 3);
	CHECK_EQ(load(&f, BASE + f.page), 0);
	end(&f);
}

TEST(prefaulting_says_where_the_memory_ends)
{
	uint64_t done = 7;
	struct fixture f;

	begin(&f, DEFAULT_VM, GMEM_BACKING_HOST);
	require_prefault(&f);
	REFUSED(gmem_vcpu_prefault(f.vcpu, BASE + (PAGES - 2) * f.page, 4 * f.page, &done),
		-ENOENT);
	CHECK_EQ(done, 2 * f.page);
	REFUSED(gmem_vcpu_prefault(f.vcpu, BASE + PAGES * f.page, f.page, &done), -ENOENT);
	CHECK_EQ(done, 0);
	end(&f);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
