/* SPDX-License-Identifier: MIT */
/* What the unit tests share: a machine under test, and how a refusal looks. */
#ifndef GMEM_UNIT_H
#define GMEM_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake.h"
#include "gmem.h"

/* A bit no kernel and no header names yet */
#define UNIT_UNKNOWN_BIT	((uint64_t)1 << 40)

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* One VM on one kernel, and what most tests want of it */
struct unit {
	int vm_fd;
	uint64_t page;
	struct gmem_caps *caps;
	struct gmem_vm *vm;
};

/* Boot the kernel and make a VM; @vm is left NULL by the first */
void unit_begin(struct unit *unit, const char *kernel);
void unit_begin_vm(struct unit *unit, const char *kernel);
/* Free all of it; nothing may be left in the kernel */
void unit_end(struct unit *unit);

struct gmem_plan *unit_plan(const struct unit *unit, uint32_t backing);
struct gmem_file *unit_file(const struct unit *unit, uint64_t pages);
/* A region of a new file, or of @plan */
struct gmem_region *unit_region(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
				const struct gmem_plan *plan);
/* Bytes of the test's own at an address aligned to the fake's page */
void *unit_memory(const struct unit *unit, uint64_t pages);
void unit_memory_free(void *memory);

/* A page count as bytes */
#define PAGES(unit, n)	((uint64_t)(n) * (unit)->page)

/*
 * The call fails with exactly @err, its sentence holds @fragment, and nothing
 * the kernel can see has changed.
 */
#define assert_refused(err, fragment, call)                                             \
	do {                                                                            \
		struct fake_snapshot *before_ = fake_snapshot();                        \
		unit_check_refusal((call), (err), (fragment), before_, #call,           \
				   __FILE__, __LINE__);                                 \
	} while (0)

void unit_check_refusal(int ret, int err, const char *fragment,
			struct fake_snapshot *before, const char *call, const char *file,
			int line);

#define assert_ok(call)	assert_int_equal((call), 0)

/* What an output holds when nobody has written to it */
#define UNTOUCHED(type)	((type *)(uintptr_t)0x5a5a5a50)

#define UNIT_MAIN(tests)                                                                \
	int main(void)                                                                  \
	{                                                                               \
		return cmocka_run_group_tests((tests), NULL, NULL);                     \
	}

#endif
