; Accesses registers of KVM that have rules (--msr): 0x174 is ignored, 0x175 denied, 0x176 logged.
%include "kev.inc"
    begin64
    handle 13, .fault
    load_idt
    xor ebx, ebx
    mov ecx, 0x174
    mov eax, 5
    xor edx, edx
    wrmsr
    mov rax, -1
    rdmsr
    or rax, rdx                 ; reads 0
    jnz .wrong
    mov ecx, 0x175
    rdmsr
    wrmsr
    cmp ebx, 2
    must_be_equal
    mov ecx, 0x176
    mov eax, 0x7000
    xor edx, edx
    wrmsr
    xor eax, eax
    rdmsr
    cmp rax, 0x7000
    must_be_equal
    finish
.wrong:
    hlt
.fault:
    inc ebx
    add rsp, 8
    add qword [rsp], 2
    iretq
