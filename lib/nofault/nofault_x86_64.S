/* SPDX-License-Identifier: MIT */
/*
 * Copy and fill for the fast engine, with instructions that may fault: see nofault.h.
 *
 * Accesses go from low to high addresses, and none leaves the range. Therefore the first
 * fault is on the lowest page that cannot be reached, or at most one loop iteration past
 * it, and nofault.c does the bytes up to that page.
 */
#if defined(__x86_64__)

#ifdef __CET__
#include <cet.h>
#else
#define _CET_ENDBR
#endif

/* One instruction that may fault. If it does, it goes on at \fixup, with the fault in r11. */
.macro access fixup:req, insn:vararg
.Lat\@:
	\insn
	.pushsection gmem_recovery, "aR"
	.balign	4
	.long	.Lat\@ - .
	.long	\fixup - .
	.popsection
.endm

.macro function name:req
	.text
	.balign	64
	.globl	\name
	.hidden	\name
	.type	\name, @function
\name:
	.cfi_startproc
	_CET_ENDBR
.endm

.macro end_function name:req
	.cfi_endproc
	.size	\name, . - \name
.endm

/*
 * struct gmem_nofault_stop gmem_nofault_fast_copy(void *dst, const void *src, size_t size)
 *
 * rdi: dst, rsi: src, rdx: size. Returns rax: done, rdx: fault.
 *
 * Up to four vectors are loaded from both ends, which may overlap in the middle, before
 * anything is stored. So a fault among the loads leaves nothing stored.
 */
function gmem_nofault_fast_copy
	movq	%rdx, %rax
	cmpq	$32, %rdx
	ja	.Lcopy_above_32
	cmpl	$16, %edx
	jb	.Lcopy_below_16

	access	.Lcopy_nothing, movups	(%rsi), %xmm0
	access	.Lcopy_nothing, movups	-16(%rsi,%rdx), %xmm1
	access	.Lcopy_nothing, movups	%xmm0, (%rdi)
	access	.Lcopy_nothing, movups	%xmm1, -16(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lcopy_below_16:
	cmpl	$8, %edx
	jb	.Lcopy_below_8
	access	.Lcopy_nothing, movq	(%rsi), %rcx
	access	.Lcopy_nothing, movq	-8(%rsi,%rdx), %r8
	access	.Lcopy_nothing, movq	%rcx, (%rdi)
	access	.Lcopy_nothing, movq	%r8, -8(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lcopy_below_8:
	cmpl	$4, %edx
	jb	.Lcopy_below_4
	access	.Lcopy_nothing, movl	(%rsi), %ecx
	access	.Lcopy_nothing, movl	-4(%rsi,%rdx), %r8d
	access	.Lcopy_nothing, movl	%ecx, (%rdi)
	access	.Lcopy_nothing, movl	%r8d, -4(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lcopy_below_4:
	testl	%edx, %edx
	jz	.Lcopy_empty
	/* The first byte of 1 or 3, and the last two of 2 or 3: a number of two is whole. */
	access	.Lcopy_nothing, movzbl	(%rsi), %ecx
	cmpl	$2, %edx
	jb	.Lcopy_first
	access	.Lcopy_nothing, movzwl	-2(%rsi,%rdx), %r8d
	je	.Lcopy_last_two
	access	.Lcopy_nothing, movb	%cl, (%rdi)
.Lcopy_last_two:
	access	.Lcopy_nothing, movw	%r8w, -2(%rdi,%rdx)
	xorl	%edx, %edx
	ret
.Lcopy_first:
	access	.Lcopy_nothing, movb	%cl, (%rdi)
.Lcopy_empty:
	xorl	%edx, %edx
	ret

.Lcopy_above_32:
	jmp	*gmem_nofault_copy_above_32(%rip)

.Lcopy_nothing:
	xorl	%eax, %eax
	movq	%r11, %rdx
	ret
end_function gmem_nofault_fast_copy

/*
 * Copies of more than 32 bytes: one function for each width of vectors. The arguments are
 * the unaligned move, four registers, and the instruction to run before a return. The
 * registers from 16 on, of AVX-512, need none. Sizes from gmem_nofault_string_from on use
 * a string instruction instead.
 *
 * At the beginning, registers are as for gmem_nofault_fast_copy, and rax: size, too.
 * Later r8: beginning of dst, rdi: position in dst, r9: the last four vectors of dst.
 */
.macro copy_pair fault:req, width:req, move:req, v0:req, v1:req, clean:vararg
	cmpq	$2 * \width, %rdx
	ja	.Lmore\@
	access	\fault, \move (%rsi), \v0
	access	\fault, \move -\width(%rsi,%rdx), \v1
	access	\fault, \move \v0, (%rdi)
	access	\fault, \move \v1, -\width(%rdi,%rdx)
	xorl	%edx, %edx
	\clean
	ret
.Lmore\@:
.endm

.macro define_copy name:req, width:req, move:req, v0:req, v1:req, v2:req, v3:req, clean:vararg
function \name
	movq	%rdi, %r8
.if \width == 64
	copy_pair .Lfault\@, 32, \move, %ymm16, %ymm17
.endif
.if \width >= 32
	copy_pair .Lfault\@, \width, \move, \v0, \v1, \clean
.endif
	cmpq	$4 * \width, %rdx
	ja	.Lmany\@
	access	.Lfault\@, \move (%rsi), \v0
	access	.Lfault\@, \move \width(%rsi), \v1
	access	.Lfault\@, \move -2*\width(%rsi,%rdx), \v2
	access	.Lfault\@, \move -\width(%rsi,%rdx), \v3
	access	.Lfault\@, \move \v0, (%rdi)
	access	.Lfault\@, \move \v1, \width(%rdi)
	access	.Lfault\@, \move \v2, -2*\width(%rdi,%rdx)
	access	.Lfault\@, \move \v3, -\width(%rdi,%rdx)
	xorl	%edx, %edx
	\clean
	ret

	/* Copy one vector to the beginning of dst, then go on where dst is aligned. */
.Lmany\@:
	cmpq	gmem_nofault_string_from(%rip), %rdx
	jae	.Lstring\@
	leaq	-4*\width(%rdi,%rdx), %r9
	access	.Lfault\@, \move (%rsi), \v0
	access	.Lfault\@, \move \v0, (%rdi)
	subq	%rdi, %rsi
	addq	$\width, %rdi
	andq	$-\width, %rdi
	jmp	.Lcheck\@
	.balign	32
.Lloop\@:
	access	.Lfault\@, \move (%rsi,%rdi), \v0
	access	.Lfault\@, \move \width(%rsi,%rdi), \v1
	access	.Lfault\@, \move 2*\width(%rsi,%rdi), \v2
	access	.Lfault\@, \move 3*\width(%rsi,%rdi), \v3
	access	.Lfault\@, \move \v0, (%rdi)
	access	.Lfault\@, \move \v1, \width(%rdi)
	access	.Lfault\@, \move \v2, 2*\width(%rdi)
	access	.Lfault\@, \move \v3, 3*\width(%rdi)
	addq	$4*\width, %rdi
.Lcheck\@:
	cmpq	%r9, %rdi
	jb	.Lloop\@
	/* Copy the last four vectors, which may overlap those that are done. */
	access	.Lfault\@, \move (%rsi,%r9), \v0
	access	.Lfault\@, \move \width(%rsi,%r9), \v1
	access	.Lfault\@, \move 2*\width(%rsi,%r9), \v2
	access	.Lfault\@, \move 3*\width(%rsi,%r9), \v3
	access	.Lfault\@, \move \v0, (%r9)
	access	.Lfault\@, \move \v1, \width(%r9)
	access	.Lfault\@, \move \v2, 2*\width(%r9)
	access	.Lfault\@, \move \v3, 3*\width(%r9)
	xorl	%edx, %edx
	\clean
	ret

	/*
	 * The string instruction is fastest if dst is aligned to 64 bytes. It updates rdi
	 * as it goes, so after a fault rdi is exact.
	 */
.Lstring\@:
	movq	%rdx, %rcx
	testb	$63, %dil
	jz	.Laligned\@
	addq	%rdi, %rcx
	.set	.Loffset, 0
	.rept	64 / \width
	access	.Lfault\@, \move .Loffset(%rsi), \v0
	access	.Lfault\@, \move \v0, .Loffset(%rdi)
	.set	.Loffset, .Loffset + \width
	.endr
	subq	%rdi, %rsi
	addq	$64, %rdi
	andq	$-64, %rdi
	addq	%rdi, %rsi
	subq	%rdi, %rcx
.Laligned\@:
	access	.Lfault\@, rep movsb
	xorl	%edx, %edx
	\clean
	ret

.Lfault\@:
	movq	%rdi, %rax
	subq	%r8, %rax
	movq	%r11, %rdx
	\clean
	ret
end_function \name
.endm

define_copy gmem_nofault_copy_sse2, 16, movups, %xmm0, %xmm1, %xmm2, %xmm3
define_copy gmem_nofault_copy_avx2, 32, vmovdqu, %ymm0, %ymm1, %ymm2, %ymm3, vzeroupper
define_copy gmem_nofault_copy_avx512, 64, vmovdqu64, %zmm16, %zmm17, %zmm18, %zmm19

/*
 * struct gmem_nofault_stop gmem_nofault_fast_fill(void *dst, int byte, size_t size)
 *
 * rdi: dst, esi: byte, rdx: size. Returns rax: done, rdx: fault.
 */
function gmem_nofault_fast_fill
	movzbl	%sil, %ecx
	movabsq	$0x0101010101010101, %rax
	imulq	%rax, %rcx
	movq	%rdx, %rax
	movq	%rdi, %r8
	cmpq	$16, %rdx
	jb	.Lfill_below_16
	movq	%rcx, %xmm0
	punpcklqdq %xmm0, %xmm0
	cmpq	$32, %rdx
	ja	.Lfill_above_32

	access	.Lfill_fault, movups	%xmm0, (%rdi)
	access	.Lfill_fault, movups	%xmm0, -16(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lfill_below_16:
	cmpl	$8, %edx
	jb	.Lfill_below_8
	access	.Lfill_fault, movq	%rcx, (%rdi)
	access	.Lfill_fault, movq	%rcx, -8(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lfill_below_8:
	cmpl	$4, %edx
	jb	.Lfill_below_4
	access	.Lfill_fault, movl	%ecx, (%rdi)
	access	.Lfill_fault, movl	%ecx, -4(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lfill_below_4:
	testl	%edx, %edx
	jz	.Lfill_empty
	cmpl	$2, %edx
	je	.Lfill_last_two
	access	.Lfill_fault, movb	%cl, (%rdi)
	jb	.Lfill_empty
.Lfill_last_two:
	access	.Lfill_fault, movw	%cx, -2(%rdi,%rdx)
.Lfill_empty:
	xorl	%edx, %edx
	ret

.Lfill_above_32:
	jmp	*gmem_nofault_fill_above_32(%rip)

.Lfill_fault:
	movq	%rdi, %rax
	subq	%r8, %rax
	movq	%r11, %rdx
	ret
end_function gmem_nofault_fast_fill

/*
 * Fills of more than 32 bytes. Registers are as for gmem_nofault_fast_fill, and xmm0: the
 * byte 16 times, ecx: the byte, rax: size, too, r8: dst, too.
 */
.macro fill_pair fault:req, width:req, move:req, v:req, clean:vararg
	cmpq	$2 * \width, %rdx
	ja	.Lmore\@
	access	\fault, \move \v, (%rdi)
	access	\fault, \move \v, -\width(%rdi,%rdx)
	xorl	%edx, %edx
	\clean
	ret
.Lmore\@:
.endm

.macro define_fill name:req, width:req, move:req, v:req, clean:vararg
function \name
.if \width == 64
	vpbroadcastb %xmm0, %ymm16
	fill_pair .Lfault\@, 32, \move, %ymm16
.endif
.if \width >= 32
	vpbroadcastb %xmm0, \v
	fill_pair .Lfault\@, \width, \move, \v, \clean
.endif
	cmpq	gmem_nofault_string_from(%rip), %rdx
	jae	.Lstring\@
	access	.Lfault\@, \move \v, (%rdi)
	access	.Lfault\@, \move \v, \width(%rdi)
	cmpq	$4 * \width, %rdx
	ja	.Lmany\@
	access	.Lfault\@, \move \v, -2*\width(%rdi,%rdx)
	access	.Lfault\@, \move \v, -\width(%rdi,%rdx)
	xorl	%edx, %edx
	\clean
	ret

.Lmany\@:
	leaq	-4*\width(%rdi,%rdx), %r9
	addq	$\width, %rdi
	andq	$-\width, %rdi
	jmp	.Lcheck\@
	.balign	32
.Lloop\@:
	access	.Lfault\@, \move \v, (%rdi)
	access	.Lfault\@, \move \v, \width(%rdi)
	access	.Lfault\@, \move \v, 2*\width(%rdi)
	access	.Lfault\@, \move \v, 3*\width(%rdi)
	addq	$4*\width, %rdi
.Lcheck\@:
	cmpq	%r9, %rdi
	jb	.Lloop\@
	access	.Lfault\@, \move \v, (%r9)
	access	.Lfault\@, \move \v, \width(%r9)
	access	.Lfault\@, \move \v, 2*\width(%r9)
	access	.Lfault\@, \move \v, 3*\width(%r9)
	xorl	%edx, %edx
	\clean
	ret

.Lstring\@:
	movl	%ecx, %eax
	movq	%rdx, %rcx
	movq	%rdx, %r9
	access	.Lfault\@, rep stosb
	movq	%r9, %rax
	xorl	%edx, %edx
	\clean
	ret

.Lfault\@:
	movq	%rdi, %rax
	subq	%r8, %rax
	movq	%r11, %rdx
	\clean
	ret
end_function \name
.endm

define_fill gmem_nofault_fill_sse2, 16, movups, %xmm0
define_fill gmem_nofault_fill_avx2, 32, vmovdqu, %ymm0, vzeroupper
define_fill gmem_nofault_fill_avx512, 64, vmovdqu64, %zmm16

#endif

	.section .note.GNU-stack, "", %progbits
