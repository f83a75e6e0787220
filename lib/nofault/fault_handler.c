/* SPDX-License-Identifier: MIT */
/*
 * Another part of the program may install a handler over ours, and pass on to ours the
 * signals that it does not know. Then removing ours would remove theirs, too; and
 * installing ours again, over theirs, would make the two pass a signal to each other for
 * ever. Therefore there are several handlers, called layers, which differ only in the
 * handler below, to which they pass a signal on. The handler below a layer never changes
 * once the layer was installed, so it was always installed before the layer. Thus there
 * are no circles, and the handlers need neither lock nor free anything.
 */
#include "nofault/fault_handler.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <ucontext.h>

#include "base/error.h"
#include "base/lock.h"
#include "nofault/nofault.h"
#include "os/sys.h"

/* ---- the recovery table ---- */

/* The linker defines these around the section; weak, because a program may have no entry. */
extern const struct gmem_recovery_entry __start_gmem_recovery[]
	__attribute__((weak, visibility("hidden")));
extern const struct gmem_recovery_entry __stop_gmem_recovery[]
	__attribute__((weak, visibility("hidden")));

static uintptr_t absolute(const int32_t *relative)
{
	return (uintptr_t)relative + (uintptr_t)(intptr_t)*relative;
}

/*
 * The entries are in no useful order, but a search of 100 ns does not matter: the fault
 * itself takes microseconds.
 */
static bool find_fixup(uintptr_t pc, uintptr_t *ret)
{
	const struct gmem_recovery_entry *entry;

	for (entry = __start_gmem_recovery; entry < __stop_gmem_recovery; entry++) {
		if (absolute(&entry->insn) == pc) {
			*ret = absolute(&entry->fixup);
			return true;
		}
	}
	return false;
}

static bool recover(const siginfo_t *info, ucontext_t *context)
{
	uint64_t err = info->si_code == BUS_MCEERR_AR ? EHWPOISON : EFAULT;
	uint64_t fault = gmem_nofault_page((uintptr_t)info->si_addr) | err;
	uintptr_t fixup;

#if defined(__x86_64__)
	greg_t *regs = context->uc_mcontext.gregs;

	if (!find_fixup((uintptr_t)regs[REG_RIP], &fixup))
		return false;
	regs[REG_R11] = (greg_t)fault;
	regs[REG_RIP] = (greg_t)fixup;
#elif defined(__aarch64__)
	mcontext_t *machine = &context->uc_mcontext;

	if (!find_fixup((uintptr_t)machine->pc, &fixup))
		return false;
	machine->regs[9] = fault;
	machine->pc = fixup;
#endif
	return true;
}

/*
 * Returns whether the interrupted instruction caused the signal. If a process sent it, or
 * if it announces a poisoned page somewhere (BUS_MCEERR_AO), it interrupts an instruction
 * of ours only by chance, and is for the handler below.
 */
static bool is_fault(const siginfo_t *info)
{
	return info->si_code > 0 && info->si_code != BUS_MCEERR_AO;
}

/* ---- layers: passing a signal on ---- */

struct layer {
	struct sigaction below;	/* written once, before @used */
	atomic_bool used;
	atomic_bool spent;	/* @below was for one signal (SA_RESETHAND), which came */
};

/* Most programs need one, few need two; each costs 160 bytes. */
#define LAYERS 4

static struct layer layers[LAYERS];

/*
 * Does what the kernel does for SIG_DFL: it kills the program, with a core dump that shows
 * the faulting instruction. The signal is queued again and blocked until this handler
 * returns. So it is delivered before the instruction runs again, and perhaps succeeds.
 */
static void die(int signal, siginfo_t *info, ucontext_t *context)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	gmem_sys_sigmask(SIG_BLOCK, &set, NULL);
	sigdelset(&context->uc_sigmask, signal);
	gmem_sys_sigaction(signal, &standard, NULL);

	/* A seccomp filter may refuse it. A fault comes again by itself, other signals do not. */
	if (gmem_sys_requeue_signal(signal, info) && !is_fault(info))
		gmem_sys_raise(signal);
}

/*
 * Calls the handler below nearly as the kernel would. Its signal mask is in force while it
 * runs, except that SIGBUS stays unblocked even without SA_NODEFER: that handler, too, may
 * access memory that is not there.
 */
static void pass_on(struct layer *layer, int signal, siginfo_t *info, ucontext_t *context)
{
	const struct sigaction *below = &layer->below;
	sigset_t mask = below->sa_mask, old;
	bool none = below->sa_handler == SIG_DFL;

	if (!none && (below->sa_flags & (int)SA_RESETHAND))
		none = atomic_exchange(&layer->spent, true);
	/* An ignored fault would come again at once, for ever. */
	if (none || (below->sa_handler == SIG_IGN && is_fault(info))) {
		die(signal, info, context);
		return;
	}
	if (below->sa_handler == SIG_IGN)
		return;

	sigdelset(&mask, signal);
	gmem_sys_sigmask(SIG_BLOCK, &mask, &old);
	if (below->sa_flags & SA_SIGINFO)
		below->sa_sigaction(signal, info, context);
	else
		below->sa_handler(signal);
	gmem_sys_sigmask(SIG_SETMASK, &old, NULL);
}

static void handle(struct layer *layer, int signal, siginfo_t *info, void *context)
{
	int saved_errno = errno;

	if (!is_fault(info) || !recover(info, context)) {
		/* Pairs with the release in take_layer(). */
		if (atomic_load_explicit(&layer->used, memory_order_acquire))
			pass_on(layer, signal, info, context);
	}
	errno = saved_errno;
}

#define HANDLER(n)                                                        \
	static void handler_##n(int signal, siginfo_t *info, void *context) \
	{                                                                 \
		handle(&layers[n], signal, info, context);                \
	}

HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)

static void (*const handlers[LAYERS])(int, siginfo_t *, void *) = {
	handler_0, handler_1, handler_2, handler_3,
};

/* Returns the layer whose handler @action is, or NULL. */
static struct layer *layer_of(const struct sigaction *action)
{
	unsigned int i;

	for (i = 0; i < LAYERS; i++) {
		if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handlers[i])
			return &layers[i];
	}
	return NULL;
}

static bool is_same(const struct sigaction *a, const struct sigaction *b)
{
	int signal;

	for (signal = 1; signal < NSIG; signal++) {
		if (sigismember(&a->sa_mask, signal) != sigismember(&b->sa_mask, signal))
			return false;
	}
	return a->sa_handler == b->sa_handler && a->sa_flags == b->sa_flags;
}

/* Returns a layer that passes on to @below, or NULL if all pass on to something else. */
static struct layer *take_layer(const struct sigaction *below)
{
	struct layer *layer;

	for (layer = layers; layer < layers + LAYERS; layer++) {
		if (!atomic_load_explicit(&layer->used, memory_order_relaxed)) {
			layer->below = *below;
			/* Pairs with the acquire in handle(). */
			atomic_store_explicit(&layer->used, true, memory_order_release);
			return layer;
		}
		if (is_same(&layer->below, below)) {
			atomic_store(&layer->spent, false);
			return layer;
		}
	}
	return NULL;
}

/* ---- enable, disable ---- */

static struct gmem_lock lock = GMEM_LOCK_INIT(GMEM_RANK_HANDLER);
static atomic_uint users;

static int install(void)
{
	struct sigaction ours = { .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };
	struct sigaction now = { .sa_flags = 0 }, replaced = { .sa_flags = 0 };
	struct layer *layer;
	int err;

	for (;;) {
		err = gmem_sys_sigaction(SIGBUS, NULL, &now);
		if (err)
			return gmem_fail(err, "recovery: SIGBUS has no handlers here: %s",
					 gmem_errno_name(err));
		if (layer_of(&now))
			return 0;

		layer = take_layer(&now);
		if (!layer)
			return gmem_fail(-EBUSY, "recovery: %d handlers of SIGBUS were installed "
					 "over libgmem's and may still lead to it", LAYERS);

		/* If SIGBUS interrupted no system call before, it must not now. */
		ours.sa_sigaction = handlers[layer - layers];
		ours.sa_flags &= ~SA_RESTART;
		if ((now.sa_flags & SA_RESTART) || now.sa_handler == SIG_IGN)
			ours.sa_flags |= SA_RESTART;

		err = gmem_sys_sigaction(SIGBUS, &ours, &replaced);
		if (err)
			return gmem_fail(err, "recovery: SIGBUS cannot be handled here: %s",
					 gmem_errno_name(err));
		if (is_same(&replaced, &now))
			return 0;

		/* Another handler was installed in between: put it back and start over. */
		gmem_sys_sigaction(SIGBUS, &replaced, NULL);
	}
}

GMEM_API int gmem_recovery_enable(void)
{
	int err;

	gmem_nofault_choose(GMEM_NOFAULT_WIDEST);

	gmem_lock_take(&lock);
	err = install();
	if (!err)
		atomic_fetch_add(&users, 1);
	gmem_lock_drop(&lock);
	return err;
}

GMEM_API void gmem_recovery_disable(void)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	struct sigaction now = { .sa_flags = 0 };
	struct layer *layer = NULL;

	gmem_lock_take(&lock);
	if (atomic_load(&users) > 0 && atomic_fetch_sub(&users, 1) == 1 &&
	    gmem_sys_sigaction(SIGBUS, NULL, &now) == 0)
		layer = layer_of(&now);
	/* If another handler is over ours, ours stays, and passes signals on. */
	if (layer)
		gmem_sys_sigaction(SIGBUS,
				   atomic_load(&layer->spent) ? &standard : &layer->below, NULL);
	gmem_lock_drop(&lock);
}

bool gmem_nofault_is_recoverable(void)
{
	struct sigaction now = { .sa_flags = 0 };

	if (!atomic_load(&users) || gmem_sys_sigmask_has(SIGBUS) ||
	    gmem_sys_sigaction(SIGBUS, NULL, &now))
		return false;

	/* Assume that a handler over ours passes signals on to it. */
	return (now.sa_flags & SA_SIGINFO) ||
	       (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN);
}
