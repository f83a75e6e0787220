/* SPDX-License-Identifier: MIT */
/* error: the sentence behind an errno, and names that never change */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "unit.h"

static void sentence_is_never_null(void **state)
{
	(void)state;
	assert_non_null(gmem_last_error());
}

static void sentence_is_that_of_the_last_failure(void **state)
{
	(void)state;
	assert_int_equal(gmem_fail(-ENOMEM, "first %d", 1), -ENOMEM);
	assert_int_equal(gmem_fail(-EINVAL, "second %s", "one"), -EINVAL);
	assert_string_equal(gmem_last_error(), "second one");
}

/* As lookups do that often find nothing */
static void sentence_may_be_written_when_it_is_asked_for(void **state)
{
	struct gmem_failure failure;

	(void)state;
	gmem_fail(-EINVAL, "another");
	assert_int_equal(gmem_fail_at(-ENOENT, "nothing at ", 0x1234, ", sorry"), -ENOENT);
	assert_int_equal(gmem_error_of_sentence(), -ENOENT);
	assert_string_equal(gmem_last_error(), "nothing at 0x1234, sorry");
	assert_string_equal(gmem_last_error(), "nothing at 0x1234, sorry");
	gmem_fail_at(-ENOENT, "nothing at ", 7, "");
	gmem_failure_keep(&failure, -ENOENT);
	gmem_fail(-EINVAL, "a later one");
	assert_string_equal(gmem_last_error(), "a later one");
	assert_int_equal(gmem_failure_restore(&failure), -ENOENT);
	assert_string_equal(gmem_last_error(), "nothing at 0x7");
}

static void sentence_that_is_too_long_is_cut_and_terminated(void **state)
{
	char text[2000];

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	gmem_fail(-EINVAL, "%s", text);
	assert_true(strlen(gmem_last_error()) > 100);
	assert_true(strlen(gmem_last_error()) < sizeof(text) - 1);
}

static void names_in_sentences_do_not_steer_a_terminal(void **state)
{
	char text[GMEM_SENTENCE_SIZE + 8];

	(void)state;
	gmem_fail(-EBUSY, "\"%s\" uses it", "disk \x1b[2J \xc2\x9b \xe2\x80\xae \xf3\xa0\x80\x81 \x9b gr\xc3\xbc\xc3\x9f");
	assert_string_equal(gmem_last_error(), "\"disk ?[2J ? ? ? ? gr\xc3\xbc\xc3\x9f\" uses it");

	/* Nor does what is left of a character at the end of a sentence that was cut. */
	for (size_t size = GMEM_SENTENCE_SIZE - 4; size < GMEM_SENTENCE_SIZE; size++) {
		memset(text, 'x', size);
		strcpy(text + size, "\xf0\x9f\x90\xa7");
		gmem_fail(-EINVAL, "%s", text);
		assert_string_equal(gmem_last_error() + size,
				    size < GMEM_SENTENCE_SIZE - 4 ? "\xf0\x9f\x90\xa7"
				    : &"???"[size - (GMEM_SENTENCE_SIZE - 4)]);
	}
}

static void *fail_in_thread(void *data)
{
	(void)data;
	gmem_fail(-EIO, "the other thread's");
	return strcmp(gmem_last_error(), "the other thread's") == 0 ? data : NULL;
}

static void each_thread_has_its_own_sentence(void **state)
{
	pthread_t thread;
	void *result = NULL;
	int mark;

	(void)state;
	gmem_fail(-EINVAL, "mine");
	assert_int_equal(pthread_create(&thread, NULL, fail_in_thread, &mark), 0);
	pthread_join(thread, &result);
	assert_ptr_equal(result, &mark);
	assert_string_equal(gmem_last_error(), "mine");
}

static void errnos_have_names(void **state)
{
	int err;

	(void)state;
	assert_string_equal(gmem_errno_name(-EINVAL), "EINVAL");
	assert_string_equal(gmem_errno_name(-EOPNOTSUPP), "EOPNOTSUPP");
	assert_string_equal(gmem_errno_name(-EHWPOISON), "EHWPOISON");
	for (err = 0; err < 600; err++)
		assert_non_null(gmem_errno_name(-err));
}

static void version_is_the_header_s(void **state)
{
	char expected[32];

	(void)state;
	snprintf(expected, sizeof(expected), "%d.%d.%d", GMEM_VERSION_MAJOR,
		 GMEM_VERSION_MINOR, GMEM_VERSION_PATCH);
	assert_string_equal(gmem_version(), expected);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(sentence_is_never_null),
	cmocka_unit_test(sentence_is_that_of_the_last_failure),
	cmocka_unit_test(sentence_may_be_written_when_it_is_asked_for),
	cmocka_unit_test(sentence_that_is_too_long_is_cut_and_terminated),
	cmocka_unit_test(names_in_sentences_do_not_steer_a_terminal),
	cmocka_unit_test(each_thread_has_its_own_sentence),
	cmocka_unit_test(errnos_have_names),
	cmocka_unit_test(version_is_the_header_s),
};

UNIT_MAIN(tests)
