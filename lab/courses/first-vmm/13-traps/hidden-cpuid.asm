; Prints the vendor that CPUID shows in leaf 0x40000000, if the other leaves are there, too.
bits 64
org 0x1000
    mov r12d, no_leaves
    xor eax, eax
    xor ecx, ecx
    cpuid
    test eax, eax
    jz failed
    mov r12d, no_hypervisor
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, 31
    jnc failed
    mov r12d, no_largest
    mov eax, 0x40000000
    xor ecx, ecx
    cpuid
    mov r13d, eax
    sub r13d, 0x40000000
    cmp r13d, 0xFFFF
    ja failed
    mov [vendor], ebx
    mov [vendor + 4], ecx
    mov [vendor + 8], edx
    mov r12d, vendor
failed:
    mov esi, r12d
.letter:
    lodsb
    test al, al
    jz .end
    out 0xE9, al
    jmp .letter
.end:
    hlt
    jmp .end
no_leaves: db "CPUID leaf 0 is empty: keep the leaves of KVM_GET_SUPPORTED_CPUID", 10, 0
no_hypervisor: db "CPUID leaf 1 does not have bit 31 of ECX", 10, 0
no_largest: db "CPUID leaf 0x40000000 does not have its number in EAX", 10, 0
vendor: times 12 db 0
    db 10, 0
text:
