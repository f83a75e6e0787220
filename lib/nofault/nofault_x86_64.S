/* SPDX-License-Identifier: MIT */
/*
 * Copy and fill with instructions that may fault, see touch.h. Accesses go
 * upwards, and none leaves the range: what faults first is the lowest page
 * that is not there, give or take one access, and the rest is C's to finish.
 */
#if defined(__x86_64__)

#ifdef __CET__
#include <cet.h>
#else
#define _CET_ENDBR
#endif

/* An instruction that may fault, and where it goes on then; r11 says why. */
.macro touch fixup:req, insn:vararg
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
 * rdi: dst, rsi: src, rdx: size. Returns rax: done, rdx: fault. Up to four
 * vectors are loaded before anything is stored, from both ends, which overlap in
 * the middle.
 */
function gmem_nofault_fast_copy
	movq	%rdx, %rax
	cmpq	$32, %rdx
	ja	.Lcopy_above_32
	cmpl	$16, %edx
	jb	.Lcopy_below_16

	touch	.Lcopy_nothing, movups	(%rsi), %xmm0
	touch	.Lcopy_nothing, movups	-16(%rsi,%rdx), %xmm1
	touch	.Lcopy_nothing, movups	%xmm0, (%rdi)
	touch	.Lcopy_nothing, movups	%xmm1, -16(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lcopy_below_16:
	cmpl	$8, %edx
	jb	.Lcopy_below_8
	touch	.Lcopy_nothing, movq	(%rsi), %rcx
	touch	.Lcopy_nothing, movq	-8(%rsi,%rdx), %r8
	touch	.Lcopy_nothing, movq	%rcx, (%rdi)
	touch	.Lcopy_nothing, movq	%r8, -8(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lcopy_below_8:
	cmpl	$4, %edx
	jb	.Lcopy_below_4
	touch	.Lcopy_nothing, movl	(%rsi), %ecx
	touch	.Lcopy_nothing, movl	-4(%rsi,%rdx), %r8d
	touch	.Lcopy_nothing, movl	%ecx, (%rdi)
	touch	.Lcopy_nothing, movl	%r8d, -4(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lcopy_below_4:
	testl	%edx, %edx
	jz	.Lcopy_empty
	/* The first byte, and the last two if there are more: 1, 2 or 3 in all */
	touch	.Lcopy_nothing, movzbl	(%rsi), %ecx
	cmpl	$1, %edx
	je	.Lcopy_first
	touch	.Lcopy_nothing, movzwl	-2(%rsi,%rdx), %r8d
	touch	.Lcopy_nothing, movb	%cl, (%rdi)
	touch	.Lcopy_nothing, movw	%r8w, -2(%rdi,%rdx)
	xorl	%edx, %edx
	ret
.Lcopy_first:
	touch	.Lcopy_nothing, movb	%cl, (%rdi)
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
 * More than 32 bytes, rax as well: size. One for each width of vectors, whose
 * unaligned move and first four registers are given, and what is to be run
 * before a return: nothing for the upper half of AVX-512's registers. From
 * gmem_nofault_string_from on a string instruction is faster.
 *
 * r8: dst where it began, rdi: where it is, r9: its last four vectors
 */
.macro copy_pair fault:req, width:req, move:req, v0:req, v1:req, clean:vararg
	cmpq	$2 * \width, %rdx
	ja	.Lmore\@
	touch	\fault, \move (%rsi), \v0
	touch	\fault, \move -\width(%rsi,%rdx), \v1
	touch	\fault, \move \v0, (%rdi)
	touch	\fault, \move \v1, -\width(%rdi,%rdx)
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
	touch	.Lfault\@, \move (%rsi), \v0
	touch	.Lfault\@, \move \width(%rsi), \v1
	touch	.Lfault\@, \move -2*\width(%rsi,%rdx), \v2
	touch	.Lfault\@, \move -\width(%rsi,%rdx), \v3
	touch	.Lfault\@, \move \v0, (%rdi)
	touch	.Lfault\@, \move \v1, \width(%rdi)
	touch	.Lfault\@, \move \v2, -2*\width(%rdi,%rdx)
	touch	.Lfault\@, \move \v3, -\width(%rdi,%rdx)
	xorl	%edx, %edx
	\clean
	ret

	/* One vector to wherever dst begins, then from where it is aligned */
.Lmany\@:
	cmpq	gmem_nofault_string_from(%rip), %rdx
	jae	.Lstring\@
	leaq	-4*\width(%rdi,%rdx), %r9
	touch	.Lfault\@, \move (%rsi), \v0
	touch	.Lfault\@, \move \v0, (%rdi)
	subq	%rdi, %rsi
	addq	$\width, %rdi
	andq	$-\width, %rdi
	jmp	.Lcheck\@
	.balign	32
.Lloop\@:
	touch	.Lfault\@, \move (%rsi,%rdi), \v0
	touch	.Lfault\@, \move \width(%rsi,%rdi), \v1
	touch	.Lfault\@, \move 2*\width(%rsi,%rdi), \v2
	touch	.Lfault\@, \move 3*\width(%rsi,%rdi), \v3
	touch	.Lfault\@, \move \v0, (%rdi)
	touch	.Lfault\@, \move \v1, \width(%rdi)
	touch	.Lfault\@, \move \v2, 2*\width(%rdi)
	touch	.Lfault\@, \move \v3, 3*\width(%rdi)
	addq	$4*\width, %rdi
.Lcheck\@:
	cmpq	%r9, %rdi
	jb	.Lloop\@
	/* The last four, some of which are done already */
	touch	.Lfault\@, \move (%rsi,%r9), \v0
	touch	.Lfault\@, \move \width(%rsi,%r9), \v1
	touch	.Lfault\@, \move 2*\width(%rsi,%r9), \v2
	touch	.Lfault\@, \move 3*\width(%rsi,%r9), \v3
	touch	.Lfault\@, \move \v0, (%r9)
	touch	.Lfault\@, \move \v1, \width(%r9)
	touch	.Lfault\@, \move \v2, 2*\width(%r9)
	touch	.Lfault\@, \move \v3, 3*\width(%r9)
	xorl	%edx, %edx
	\clean
	ret

	/* The string instruction likes dst aligned to 64. rdi stays exact while it runs. */
.Lstring\@:
	movq	%rdx, %rcx
	testb	$63, %dil
	jz	.Laligned\@
	addq	%rdi, %rcx
	.set	.Loffset, 0
	.rept	64 / \width
	touch	.Lfault\@, \move .Loffset(%rsi), \v0
	touch	.Lfault\@, \move \v0, .Loffset(%rdi)
	.set	.Loffset, .Loffset + \width
	.endr
	subq	%rdi, %rsi
	addq	$64, %rdi
	andq	$-64, %rdi
	addq	%rdi, %rsi
	subq	%rdi, %rcx
.Laligned\@:
	touch	.Lfault\@, rep movsb
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

	touch	.Lfill_fault, movups	%xmm0, (%rdi)
	touch	.Lfill_fault, movups	%xmm0, -16(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lfill_below_16:
	cmpl	$8, %edx
	jb	.Lfill_below_8
	touch	.Lfill_fault, movq	%rcx, (%rdi)
	touch	.Lfill_fault, movq	%rcx, -8(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lfill_below_8:
	cmpl	$4, %edx
	jb	.Lfill_below_4
	touch	.Lfill_fault, movl	%ecx, (%rdi)
	touch	.Lfill_fault, movl	%ecx, -4(%rdi,%rdx)
	xorl	%edx, %edx
	ret

.Lfill_below_4:
	testl	%edx, %edx
	jz	.Lfill_empty
	touch	.Lfill_fault, movb	%cl, (%rdi)
	cmpl	$1, %edx
	je	.Lfill_empty
	touch	.Lfill_fault, movw	%cx, -2(%rdi,%rdx)
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

/* More than 32 bytes, xmm0: the byte 16 times, ecx: the byte, rax: size, too, r8: dst, too */
.macro fill_pair fault:req, width:req, move:req, v:req, clean:vararg
	cmpq	$2 * \width, %rdx
	ja	.Lmore\@
	touch	\fault, \move \v, (%rdi)
	touch	\fault, \move \v, -\width(%rdi,%rdx)
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
	touch	.Lfault\@, \move \v, (%rdi)
	touch	.Lfault\@, \move \v, \width(%rdi)
	cmpq	$4 * \width, %rdx
	ja	.Lmany\@
	touch	.Lfault\@, \move \v, -2*\width(%rdi,%rdx)
	touch	.Lfault\@, \move \v, -\width(%rdi,%rdx)
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
	touch	.Lfault\@, \move \v, (%rdi)
	touch	.Lfault\@, \move \v, \width(%rdi)
	touch	.Lfault\@, \move \v, 2*\width(%rdi)
	touch	.Lfault\@, \move \v, 3*\width(%rdi)
	addq	$4*\width, %rdi
.Lcheck\@:
	cmpq	%r9, %rdi
	jb	.Lloop\@
	touch	.Lfault\@, \move \v, (%r9)
	touch	.Lfault\@, \move \v, \width(%r9)
	touch	.Lfault\@, \move \v, 2*\width(%r9)
	touch	.Lfault\@, \move \v, 3*\width(%r9)
	xorl	%edx, %edx
	\clean
	ret

.Lstring\@:
	movl	%ecx, %eax
	movq	%rdx, %rcx
	movq	%rdx, %r9
	touch	.Lfault\@, rep stosb
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
