# The first instructions: 32-bit protected mode, paging off, from a PVH loader (ebx: start info) or a Multiboot2 loader
# (eax: magic, ebx: information). Enters long mode with page tables for the first 4 GiB at 0, DIRECT_MAP and KERNEL_BASE, and calls
# kernel_start_rust(magic, info).
.set KB, 0xffffffff80000000

# With the page tables in eax: PAE, LME and NXE, PG and WP and PE.
.macro enter_long_mode
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax
    movl %eax, %cr0
.endm
.macro clear_segments
    xorl %eax, %eax
    .irp segment, ds, es, ss, fs, gs
    movw %ax, %\segment
    .endr
.endm

.section .multiboot2, "a"
.balign 8
multiboot2_header:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_end - multiboot2_header))
    # information request: memory map, module, ACPI old and new, command line
    .balign 8
    .short 1, 0
    .long 8 + 4 * 5
    .long 6, 3, 14, 15, 1
    # entry address
    .balign 8
    .short 3, 0
    .long 12
    .long boot_start - KB
    # modules on page boundaries
    .balign 8
    .short 6, 0
    .long 8
    .balign 8
    .short 0, 0
    .long 8
multiboot2_end:

.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad boot_start - KB

.section .boot.text, "ax"
.code32
.global boot_start
boot_start:
    cld
    cli
    movl %eax, %ebp
    movl %ebx, %esi
    movl $(boot_stack_top - KB), %esp

    # Long mode and NX?
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb no_long_mode
    movl $0x80000001, %eax
    cpuid
    testl $(1 << 29), %edx
    jz no_long_mode
    testl $(1 << 20), %edx
    jz no_long_mode

    movl $(boot_pml4 - KB), %eax
    enter_long_mode
    lgdt boot_gdt_pointer - KB
    ljmp $8, $(boot_long - KB)

no_long_mode:
    movw $0x3fb, %dx            # 115,200 baud, 8 bits: no firmware need have set the line up
    movb $0x80, %al
    outb %al, %dx
    movw $0x3f8, %dx
    movw $1, %ax
    outw %ax, %dx
    movw $0x3fb, %dx
    movb $3, %al
    outb %al, %dx
    movl $(boot_no_long_mode - KB), %esi
    movl $0xb8000, %edi
3:  lodsb
    testb %al, %al
    jz 5f
    movb %al, (%edi)
    movb $0x4f, 1(%edi)
    addl $2, %edi
    movb %al, %bl
    movl $0x10000, %ecx
    movw $0x3fd, %dx
4:  inb %dx, %al
    testb $0x20, %al
    loopz 4b
    movw $0x3f8, %dx
    movb %bl, %al
    outb %al, %dx
    jmp 3b
5:  hlt
    jmp 5b

.code64
boot_long:
    movabsq $6f, %rax
    jmp *%rax
6:  clear_segments
    movabsq $boot_stack_top, %rsp
    movl %ebp, %edi
    movl %esi, %esi
    xorl %ebp, %ebp
    call kernel_start_rust
7:  hlt
    jmp 7b

# Application processors: real mode at physical 0x8000 (this is copied there). The words at ap_cr3 and after it are filled
# in by the processor that sends the startup IPI.
.global ap_trampoline, ap_trampoline_end, ap_cr3
.code16
.balign 16
ap_trampoline:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline + 0x8000
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $16, $(ap_protected - ap_trampoline + 0x8000)
.code32
ap_protected:
    movw $24, %ax
    movw %ax, %ds
    movl ap_cr3 - ap_trampoline + 0x8000, %eax
    enter_long_mode
    ljmp $8, $(ap_long - ap_trampoline + 0x8000)
.code64
ap_long:
    clear_segments
    # One processor takes the structure; one that comes too late finds none, and stops.
    xorl %edi, %edi
    xchgq %rdi, ap_cpu - ap_trampoline + 0x8000
    testq %rdi, %rdi
    jz 8f
    movq 24(%rdi), %rsp
    movq ap_entry - ap_trampoline + 0x8000, %rax
    xorl %ebp, %ebp
    pushq $0
    jmp *%rax
8:  hlt
    jmp 8b
.balign 8
ap_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff
ap_gdt_pointer:
    .short 31
    .long ap_gdt - ap_trampoline + 0x8000
.balign 8
ap_cr3: .quad 0
ap_cpu: .quad 0
ap_entry: .quad 0
ap_trampoline_end:

.section .rodata
.balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff
boot_gdt_pointer:
    .short 15
    .long boot_gdt - KB
boot_no_long_mode:
    .asciz "moira: cannot boot: this processor has no 64-bit mode with NX\r\n"

# The first 4 GiB in pages of 2 MiB; at KERNEL_BASE, which is the last 2 GiB, the first two of them.
.section .data
.balign 4096
boot_pml4:
    .quad boot_pdpt_low - KB + 3
    .skip 255 * 8
    .quad boot_pdpt_low - KB + 3
    .skip 254 * 8
    .quad boot_pdpt_high - KB + 3
boot_pdpt_high:
    .skip 510 * 8
    .quad boot_directories - KB + 0x0003, boot_directories - KB + 0x1003
boot_pdpt_low:
    .quad boot_directories - KB + 0x0003, boot_directories - KB + 0x1003
    .quad boot_directories - KB + 0x2003, boot_directories - KB + 0x3003
    .skip 508 * 8
boot_directories:
.set page, 0x83
.rept 4 * 512
    .quad page
    .set page, page + 0x200000
.endr

.section .bss
.balign 4096
boot_stack: .skip 32768
boot_stack_top:
