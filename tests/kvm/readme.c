/* SPDX-License-Identifier: MIT */
/* The README's ten lines run on every kernel: examples/ten-lines.c, told as TAP. */
int ten_lines_main(int argc, char **argv);

#define main ten_lines_main
#include "../../examples/ten-lines.c"
#undef main

int main(int argc, char **argv)
{
	int status = ten_lines_main(argc, argv);

	printf("%s 1 - the README's lines run\n1..1\n", status ? "not ok" : "ok");
	return status;
}
