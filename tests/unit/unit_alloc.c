/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "fake.h"
#include "unit_alloc.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

static unsigned countdown;
static unsigned made;	/* atomic: by any thread */
static bool struck;

void unit_fail_alloc(unsigned n)
{
	struck = false;
	countdown = n;
}

bool unit_alloc_struck(void)
{
	countdown = 0;
	return struck;
}

unsigned unit_alloc_count(void)
{
	return __atomic_load_n(&made, __ATOMIC_RELAXED);
}

static bool fails(void)
{
	if (fake_is_running())
		return false;
	__atomic_fetch_add(&made, 1, __ATOMIC_RELAXED);
	if (!countdown || --countdown)
		return false;
	struck = true;
	return true;
}

void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	return fails() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return fails() ? NULL : __real_aligned_alloc(align, size);
}
