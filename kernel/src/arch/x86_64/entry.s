# Ways into and out of the kernel. Offsets are checked against the structures in percpu.rs and object/thread.rs.
#
# A thread's registers lie in its object in the order of the instruction encoding, then rip and rflags; CPU_REGS_END points
# just above them for the running thread, so that pushes fill them.
.set CPU_SELF, 0
.set CPU_SCRATCH, 8
.set CPU_REGS_END, 16
.set CPU_STACK, 24
.set CPU_EPOCH, 32
.set CPU_SAVE, 40
.set CPU_KERNEL_CR3, 64
.set CPU_TASK_CR3, 72
.set CPU_MEASURES, 80
.set CPU_VERW, 84
# Top of the stack that interrupts of tasks begin on.
.set CPU_ENTRY_TOP, 4096
.set ENTRY_IBPB, 4
.set VERW, 16
.set T_REGS, 64
.set T_RIP, 64 + 16 * 8
.set T_RFLAGS, 64 + 17 * 8
.set T_EXIT, 64 + 18 * 8

.macro push_all registers:vararg
    .irp register, \registers
    push \register
    .endr
.endm
.macro push_registers
    push_all r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp
    push qword ptr gs:[CPU_SCRATCH]
    push_all rbx, rdx, rcx, rax
.endm

# What an interrupt in the kernel saves.
.macro push_kernel
    push_all rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rbx, rbp
.endm
.macro pop_kernel
    .irp register, rbp, rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    pop \register
    .endr
.endm

.section .text
.balign 64
.global entry_syscall
entry_syscall:
    swapgs
entry_syscall_inside:
    mov gs:[CPU_SCRATCH], rsp
    mov rsp, gs:[CPU_REGS_END]
    mov qword ptr [rsp], 0
    push r11
    push rcx
    # r11 and rcx themselves are lost to SYSCALL: what stands in their places is of no interest.
    push_registers
    lea rsi, [rsp - T_REGS]
    mov rsp, gs:[CPU_STACK]
    mov rdi, gs:[CPU_SELF]
    lock inc qword ptr gs:[CPU_EPOCH]
    mov rdx, rax
    # Whoever handles it returns the thread to resume in rax.
    push offset resume_thread
    cmp al, 1
    je syscall_call
    cmp al, 2
    je syscall_reply_receive
    cmp al, 6
    je syscall_signal
    cmp al, 9
    je syscall_run
    jmp syscall

.balign 64
.global resume_thread
resume_thread:
    inc qword ptr gs:[CPU_EPOCH]
    .irp number, 8, 9, 10, 12, 13, 14, 15
    mov r\number, [rax + T_REGS + \number * 8]
    .endr
    mov rdx, [rax + T_REGS + 2 * 8]
    mov rbx, [rax + T_REGS + 3 * 8]
    mov rbp, [rax + T_REGS + 5 * 8]
    mov rsi, [rax + T_REGS + 6 * 8]
    mov rdi, [rax + T_REGS + 7 * 8]
    cmp qword ptr [rax + T_EXIT], 0
    jne 2f
    mov rcx, [rax + T_RIP]
    mov r11, [rax + T_RFLAGS]
    mov rsp, [rax + T_REGS + 4 * 8]
    mov rax, [rax + T_REGS]
.global patch_sysret
patch_sysret:
    swapgs
    sysretq
2:  # It came in by an interrupt or exception, or its registers were written: all of them count, and only IRET is safe.
    push 0x2b
    push qword ptr [rax + T_REGS + 4 * 8]
    push qword ptr [rax + T_RFLAGS]
    push 0x33
    push qword ptr [rax + T_RIP]
    mov rcx, [rax + T_REGS + 1 * 8]
    mov r11, [rax + T_REGS + 11 * 8]
    mov rax, [rax + T_REGS]
.global patch_iret
patch_iret:
    swapgs
    iretq

# What runs, or may run, on the tables of a task that does not have the kernel in them. `mitigations.rs` puts jumps to the hardened
# pieces where the labels named patch_ stand, as far as they are wanted.
.section .text_entry, "ax"

# The kernel's tables, and a barrier for the branch predictor. rax is lost.
.macro harden_entry
    mov rax, gs:[CPU_KERNEL_CR3]
    test rax, rax
    jz 2f
    mov cr3, rax
2:  test byte ptr gs:[CPU_MEASURES], ENTRY_IBPB
    jz 3f
    mov gs:[CPU_SAVE + 8], rcx
    mov gs:[CPU_SAVE + 16], rdx
    mov ecx, 0x49
    mov eax, 1
    xor edx, edx
    wrmsr
    mov rcx, gs:[CPU_SAVE + 8]
    mov rdx, gs:[CPU_SAVE + 16]
3:
.endm

# The task's tables, and nothing of the kernel's in the buffers. rax and flags are lost.
.macro harden_exit
    mov rax, gs:[CPU_TASK_CR3]
    test rax, rax
    jz 2f
    mov cr3, rax
2:  mov rax, gs:[CPU_SAVE]
    test byte ptr gs:[CPU_MEASURES], VERW
    jz 3f
    verw word ptr gs:[CPU_VERW]
3:  swapgs
.endm

.global entry_syscall_hardened, entry_interrupt_hardened, exit_sysret_hardened, exit_iret_hardened
entry_syscall_hardened:
    swapgs
    mov gs:[CPU_SAVE], rax
    harden_entry
    mov rax, gs:[CPU_SAVE]
    jmp entry_syscall_inside

exit_sysret_hardened:
    mov gs:[CPU_SAVE], rax
    harden_exit
    sysretq

exit_iret_hardened:
    mov gs:[CPU_SAVE], rax
    pop qword ptr gs:[CPU_ENTRY_TOP - 40]
    pop qword ptr gs:[CPU_ENTRY_TOP - 32]
    pop qword ptr gs:[CPU_ENTRY_TOP - 24]
    pop qword ptr gs:[CPU_ENTRY_TOP - 16]
    pop qword ptr gs:[CPU_ENTRY_TOP - 8]
    mov rsp, gs:[CPU_SELF]
    add rsp, CPU_ENTRY_TOP - 40
    harden_exit
    iretq

entry_interrupt_hardened:
    # The branch that tells tasks from the kernel may have been predicted wrongly: nothing is read through GS before it is known.
    lfence
    mov gs:[CPU_SAVE], rax
    harden_entry
    jmp entry_common_inside

# A MOV SS before SYSCALL can put a debug exception on the kernel's first instruction, with the task's GS: of no interest.
.global entry_debug
entry_debug:
    test byte ptr [rsp + 8], 3
    jnz entry_stubs + 12
    iretq

# Exceptions and interrupts. Each stub pushes (error code, vector), 12 bytes apart in a table of 256.
.global entry_stubs
entry_stubs:
.set vector, 0
.rept 256
    .org entry_stubs + vector * 12
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
    .endif
    push vector
    jmp entry_common
    .set vector, vector + 1
.endr

# Stack: vector, error, rip, cs, rflags, rsp, ss
entry_common:
    test byte ptr [rsp + 24], 3
    jz entry_kernel
    swapgs
.global patch_interrupt
patch_interrupt:
    mov gs:[CPU_SAVE], rax
entry_common_inside:
    mov rax, [rsp + 40]
    mov gs:[CPU_SCRATCH], rax
    mov rax, gs:[CPU_REGS_END]
    push qword ptr [rsp + 32]
    pop qword ptr [rax - 8]
    push qword ptr [rsp + 16]
    pop qword ptr [rax - 16]
    mov qword ptr [rax], 1
    push qword ptr [rsp]
    pop qword ptr gs:[CPU_SAVE + 8]
    push qword ptr [rsp + 8]
    pop qword ptr gs:[CPU_SAVE + 16]
    lea rsp, [rax - 16]
    mov rax, gs:[CPU_SAVE]
    push_registers
    lea rsi, [rsp - T_REGS]
    mov rsp, gs:[CPU_STACK]
    # AC and DF off: gates leave both as the task had them, and AC would switch SMAP off.
    push 2
    popfq
    mov rdi, gs:[CPU_SELF]
    mov rdx, gs:[CPU_SAVE + 8]
    mov rcx, gs:[CPU_SAVE + 16]
    lock inc qword ptr gs:[CPU_EPOCH]
    call user_trap
    jmp resume_thread

# In the kernel: only interrupts at the points that open a window for them, and bugs.
.section .text
entry_kernel:
    cld
    push_kernel
    mov rbp, rsp
    mov rdi, [rsp + 88]
    lea rsi, [rsp + 88]
    mov rdx, rsp
    and rsp, -16
    call kernel_trap
    mov rsp, rbp
    pop_kernel
    add rsp, 16
    iretq

# NMI, double fault, machine check, debug: stacks of their own, whose top word is the CPU pointer; GS is not trusted.
.section .text_entry
.global entry_paranoid_nmi, entry_paranoid_df, entry_paranoid_mc
entry_paranoid_nmi:
    push 0
    push 2
    jmp entry_paranoid
entry_paranoid_df:
    push 8
    jmp entry_paranoid
entry_paranoid_mc:
    push 0
    push 18
entry_paranoid:
    push 2
    popfq
    push_kernel
    mov rbp, rsp
    mov rdi, [rsp + 88]
    lea rsi, [rsp + 88]
    # The CPU pointer stands in the top word of this 4 KiB stack.
    mov rdx, rsp
    or rdx, 4095
    mov rdx, [rdx - 7]
    # Whatever tables are loaded come back.
    mov rbx, cr3
    mov rax, [rdx + CPU_KERNEL_CR3]
    test rax, rax
    cmovz rax, rbx
    mov cr3, rax
    and rsp, -16
    call paranoid_trap
    mov cr3, rbx
    mov rsp, rbp
    pop_kernel
    add rsp, 16
    iretq

# Calls that nobody returns from, so that no return of the kernel is predicted from what was called before.
.section .text
.global fill_return_stack
fill_return_stack:
.rept 32
    call 3f
2:  pause
    lfence
    jmp 2b
3:
.endr
    add rsp, 32 * 8
    ret
