; The processor's hypercall instructions. Their effect depends on the host, and neither may hang. For each one the guest
; writes to port 0x42: 1 after #UD, 2 after an answer of KVM.
%include "kev.inc"
%macro try 1
    xor ebx, ebx
    mov eax, 0x7FFF             ; not a call of KVM
    %1
    mov al, 1
    test ebx, ebx
    jnz %%say
    mov al, 2
%%say:
    out 0x42, al
%endmacro
    begin64
    handle 6, .undefined
    load_idt
    try vmcall
    try vmmcall
    finish
.undefined:
    inc ebx
    add qword [rsp], 3          ; both are three bytes
    iretq
