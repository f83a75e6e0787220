/* SPDX-License-Identifier: MIT */
/* utf8: which bytes are characters, and which characters are printed as they are */
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "unit.h"

/* Encodes as UTF-8 would, also what is no character. */
static const char *encode(uint32_t code, char buf[5])
{
	memset(buf, 0, 5);
	if (code < 0x80) {
		buf[0] = (char)code;
	} else if (code < 0x800) {
		buf[0] = (char)(0xc0 | code >> 6);
		buf[1] = (char)(0x80 | (code & 0x3f));
	} else if (code < 0x10000) {
		buf[0] = (char)(0xe0 | code >> 12);
		buf[1] = (char)(0x80 | (code >> 6 & 0x3f));
		buf[2] = (char)(0x80 | (code & 0x3f));
	} else {
		buf[0] = (char)(0xf0 | code >> 18);
		buf[1] = (char)(0x80 | (code >> 12 & 0x3f));
		buf[2] = (char)(0x80 | (code >> 6 & 0x3f));
		buf[3] = (char)(0x80 | (code & 0x3f));
	}
	return buf;
}

static void every_character_is_decoded(void **state)
{
	char text[5];

	(void)state;
	for (uint32_t code = 1, got; code <= 0x10ffff; code++) {
		if (code == 0xd800)
			code = 0xe000;
		encode(code, text);
		assert_int_equal(gmem_utf8_next(text, &got), strlen(text));
		assert_int_equal(got, code);
	}
}

static void the_end_has_no_bytes(void **state)
{
	uint32_t code = 7;

	(void)state;
	assert_int_equal(gmem_utf8_next("", &code), 0);
	assert_int_equal(code, 0);
}

static void broken_bytes_are_told_one_by_one(void **state)
{
	static const char *const broken[] = {
		"\x80", "\x9b", "\xbf", "\xfe", "\xff", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80\x80",
		/* cut off, at the end and before another character */
		"\xc3", "\xe2\x82", "\xf0\x9f\x90", "\xc3""a", "\xe2\x82""a", "\xf0\x9f\x90\xc3",
		/* too long for what they say: '/', ESC, U+009B, U+202E, U+FFFF */
		"\xc0\xaf", "\xc1\xbf", "\xc0\x9b", "\xe0\x80\x9b", "\xe0\x82\x9b", "\xf0\x82\x80\xae",
		"\xf0\x8f\xbf\xbf",
		/* surrogates, and above the last character */
		"\xed\xa0\x80", "\xed\xbf\xbf", "\xf4\x90\x80\x80",
	};
	uint32_t code;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(broken); i++) {
		assert_int_equal(gmem_utf8_next(broken[i], &code), 1);
		assert_int_equal(code, GMEM_UTF8_BROKEN);
	}
	assert_false(gmem_utf8_is_harmless(GMEM_UTF8_BROKEN));
}

/* By kind: all of these must go */
static const uint32_t harmful[][2] = {
	{ 0, 0x1f }, { 0x7f, 0x9f },				/* controls, C0 and C1 */
	{ 0x61c, 0x61c }, { 0x200e, 0x200f }, { 0x202a, 0x202e },
	{ 0x2066, 0x2069 },					/* direction of writing */
	{ 0xad, 0xad }, { 0x180e, 0x180e }, { 0x200b, 0x200d }, { 0x2060, 0x2064 },
	{ 0xfeff, 0xfeff }, { 0xfff9, 0xfffb }, { 0xe0001, 0xe0001 },
	{ 0xe0020, 0xe007f },					/* formats without width */
	{ 0x34f, 0x34f }, { 0x115f, 0x1160 }, { 0x2800, 0x2800 }, { 0x3164, 0x3164 },
	{ 0xfe00, 0xfe0f }, { 0xffa0, 0xffa0 }, { 0xe0100, 0xe01ef },	/* drawn as nothing */
	{ 0xa0, 0xa0 }, { 0x2000, 0x200a }, { 0x202f, 0x202f }, { 0x3000, 0x3000 },	/* other spaces */
	{ 0x2028, 0x2029 },					/* lines and paragraphs */
	{ 0xd800, 0xdfff },					/* surrogates */
	{ 0xfdd0, 0xfdef }, { 0xfffe, 0xffff }, { 0x1fffe, 0x1ffff }, { 0x2fffe, 0x2ffff },
	{ 0x10fffe, 0x10ffff },					/* no characters */
	{ 0xe000, 0xf8ff }, { 0xf0000, 0xffffd }, { 0x100000, 0x10fffd },	/* private use */
	{ 0x378, 0x379 }, { 0x530, 0x530 }, { 0x2fe0, 0x2fef }, { 0x1f8ff, 0x1f8ff },
	{ 0x40000, 0x4ffff }, { 0xe0080, 0xe00ff },		/* not assigned */
};

static void what_could_do_harm_is_not_printed(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(harmful); i++)
		for (uint32_t code = harmful[i][0]; code <= harmful[i][1]; code++)
			assert_false(gmem_utf8_is_harmless(code));
	assert_false(gmem_utf8_is_harmless(0x110000));
}

static void letters_of_all_scripts_are_printed(void **state)
{
	static const char *const texts[] = {
		" !\"azAZ09~", "gr\xc3\xbc\xc3\x9f", "\xce\xa9 \xd0\x96 \xd7\xa9 \xd8\xb9",
		"\xe0\xa4\x95 \xe4\xb8\xad\xe6\x96\x87 \xe3\x81\x8b \xed\x95\x9c",
		"\xe2\x82\xac \xe2\x96\x88 e\xcc\x81 \xef\xbf\xbd \xf0\x9f\x90\xa7 \xf0\xa0\xae\xb7",
	};
	char text[64];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		strcpy(text, texts[i]);
		gmem_utf8_clean(text);
		assert_string_equal(text, texts[i]);
	}
}

static void cleaning_leaves_a_mark_for_each_character(void **state)
{
	char text[5], cleaned[16];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(harmful); i++) {
		uint32_t code = harmful[i][0];

		if (!code || (code >= 0xd800 && code < 0xe000))
			continue;
		snprintf(cleaned, sizeof(cleaned), "a%sb", encode(code, text));
		gmem_utf8_clean(cleaned);
		assert_string_equal(cleaned, "a?b");
	}
	strcpy(cleaned, "\x9b\xe2\x80\xc2\x9b\x1b[\xff");
	gmem_utf8_clean(cleaned);
	assert_string_equal(cleaned, "?????[?");
}

static void escapes_are_those_of_json(void **state)
{
	char buf[GMEM_UTF8_ESCAPE];

	(void)state;
	assert_string_equal(gmem_utf8_escape(0, buf), "\\u0000");
	assert_string_equal(gmem_utf8_escape(0x9b, buf), "\\u009b");
	assert_string_equal(gmem_utf8_escape(0xffff, buf), "\\uffff");
	assert_string_equal(gmem_utf8_escape(0x10000, buf), "\\ud800\\udc00");
	assert_string_equal(gmem_utf8_escape(0xe0001, buf), "\\udb40\\udc01");
	assert_string_equal(gmem_utf8_escape(0x10ffff, buf), "\\udbff\\udfff");
	assert_string_equal(gmem_utf8_escape(GMEM_UTF8_BROKEN, buf), "\\ufffd");
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(every_character_is_decoded),
	cmocka_unit_test(the_end_has_no_bytes),
	cmocka_unit_test(broken_bytes_are_told_one_by_one),
	cmocka_unit_test(what_could_do_harm_is_not_printed),
	cmocka_unit_test(letters_of_all_scripts_are_printed),
	cmocka_unit_test(cleaning_leaves_a_mark_for_each_character),
	cmocka_unit_test(escapes_are_those_of_json),
};

UNIT_MAIN(tests)
