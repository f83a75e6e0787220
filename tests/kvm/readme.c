/* SPDX-License-Identifier: MIT */
/* The README's ten lines run on every kernel: examples/ten-lines.c as a test. */
int ten_lines_main(int argc, char **argv);

/* The example's, beside those of tests */
#define main ten_lines_main
#define open_kvm ten_lines_open_kvm
#include "../../examples/ten-lines.c"
#undef main
#undef open_kvm

#include "harness.h"

TEST(the_lines_of_the_readme_run)
{
	char name[] = "ten-lines", *argv[] = { name, NULL };

	CHECK_EQ(ten_lines_main(1, argv), 0);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
