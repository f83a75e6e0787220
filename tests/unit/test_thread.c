/* SPDX-License-Identifier: MIT */
#include <stdbool.h>
#include <string.h>

#include "unit.h"
#include "os/thread.h"

/* Of a program that keeps much for each thread, which glibc puts on the thread's stack */
static __thread volatile char of_the_thread[3 << 20];

struct work {
	size_t use;
	size_t stack;
};

static void use_stack(size_t use)
{
	volatile char *bytes = __builtin_alloca(use);

	for (size_t i = 0; i < use; i += 1024)
		bytes[i] = (char)i;
}

static void *work(void *data)
{
	struct work *w = data;
	pthread_attr_t attr;

	pthread_getattr_np(pthread_self(), &attr);
	pthread_attr_getstacksize(&attr, &w->stack);
	pthread_attr_destroy(&attr);
	for (size_t i = 0; i < sizeof(of_the_thread); i += 1024)
		of_the_thread[i] = 1;
	use_stack(w->use);
	return NULL;
}

static void threads_have_the_stack_that_they_use_and_little_more(void **state)
{
	static const size_t uses[] = { GMEM_THREAD_PLAIN, GMEM_THREAD_CALLBACKS };

	(void)state;
	fake_boot("6.18");
	for (size_t i = 0; i < ARRAY_SIZE(uses); i++) {
		struct work w = { .use = uses[i] };
		pthread_t thread;

		assert_int_equal(gmem_thread_start(work, &w, uses[i], &thread), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
		/* A sanitizer adds to it. */
		assert_in_range(w.stack, uses[i], sizeof(of_the_thread) + uses[i] + (2 << 20));
	}
	assert_int_equal(fake_halt(), 0);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(threads_have_the_stack_that_they_use_and_little_more),
};

UNIT_MAIN(tests)
