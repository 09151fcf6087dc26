; Switches from real mode to protected mode to long mode by itself, and prints a line in each.
; Intel SDM volume 3, sections 9.9.1 (to protected mode) and 9.8.5 (to long mode).

%define CONSOLE 0xE9
%define PML4    0x20000
%define PDPT    0x21000
%define PD      0x22000

bits 16
section .start exec
real:
    mov esi, in_real
.next:
    lodsb
    test al, al
    jz .done
    out CONSOLE, al
    jmp .next
.done:
    cli
    lgdt [gdt_pointer]
    mov eax, cr0
    or eax, 1                   ; PE
    mov cr0, eax
    jmp dword 0x08:protected

bits 32
protected:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x100000
    mov esi, in_protected
    call print32

    ; identity map of the first 2 MiB with one large page
    mov dword [PML4], PDPT | 3
    mov dword [PDPT], PD | 3
    mov dword [PD], 0x83
    mov eax, cr4
    or eax, 1 << 5              ; PAE
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xC0000080         ; EFER
    rdmsr
    or eax, 1 << 8              ; LME
    wrmsr
    mov eax, cr0
    or eax, 1 << 31             ; PG
    mov cr0, eax
    jmp dword 0x18:long_mode

print32:
    lodsb
    test al, al
    jz .done
    out CONSOLE, al
    jmp print32
.done:
    ret

bits 64
long_mode:
    mov esi, in_long
.next:
    lodsb
    test al, al
    jz .done
    out CONSOLE, al
    jmp .next
.done:
    mov eax, 42
    mov [0x400], rax
    hlt

in_real:      db "real mode", 10, 0
in_protected: db "protected mode", 10, 0
in_long:      db "long mode", 10, 0

align 8
gdt:
    dq 0
    dq 0x00CF9A000000FFFF       ; 0x08: 32-bit code
    dq 0x00CF92000000FFFF       ; 0x10: data
    dq 0x00AF9A000000FFFF       ; 0x18: 64-bit code
gdt_pointer:
    dw $ - gdt - 1
    dd gdt
