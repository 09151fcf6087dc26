; Reads CPUID 256 times: the vendor stays, leaf 1 has this vCPU's number (rdi has it, too), the hypervisor is there and
; says its name. Prints the vendor.
%include "kev.inc"
    begin64
    mov r12, rdi                ; this vCPU's number
    xor eax, eax
    cpuid
    mov [vendor], ebx
    mov [vendor + 4], edx
    mov [vendor + 8], ecx
    mov r13d, 255
.again:
    xor eax, eax
    cpuid
    cmp ebx, [vendor]
    must_be_equal
    mov eax, 1
    cpuid
    bt ecx, 31                  ; a hypervisor is there
    jnc .wrong
    shr ebx, 24
    cmp rbx, r12
    must_be_equal
    dec r13d
    jnz .again
    mov eax, 0x40000000
    cpuid
    cmp ebx, [signature]
    must_be_equal
    cmp ecx, [signature + 4]
    must_be_equal
    cmp edx, [signature + 8]
    must_be_equal
    finish
.wrong:
    hlt
align 4
vendor: times 12 db 0
signature: db "vmm-rust-kvm"
